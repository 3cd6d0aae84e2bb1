// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title The marketplace's vocabulary: its rows, events and refusals
/// @notice Amounts are in the payment token's smallest unit (wei for ETH, which is address(0)),
///         times in seconds, `tokens` are generated language-model tokens.
interface IJobMarketplace {
    enum SessionStatus {
        Active,
        Completed,
        TimedOut
    }

    /// @dev The first fifteen fields keep the order of the mission documents' marketplace.
    struct SessionJob {
        uint256 id;
        address requester;
        address host;
        address paymentToken;
        uint256 deposit;
        uint256 pricePerToken;
        uint256 tokensUsed;
        uint256 maxDuration;
        uint256 startTime;
        uint256 lastProofTime;
        uint256 proofInterval;
        SessionStatus status;
        uint256 withdrawnByHost;
        uint256 refundedToUser;
        string conversationCID;
        uint256 idleTimeout;
        uint256 paidToTreasury;
    }

    /// @notice Bounds of a deposit in one token; `maximum` is 0 where the token is not accepted.
    struct DepositLimits {
        uint256 minimum;
        uint256 maximum;
    }

    event SessionJobCreated(uint256 indexed jobId, address indexed requester, address indexed host, uint256 deposit);
    event ProofOfWork(uint256 indexed jobId, address indexed host, uint256 tokensClaimed, bytes32 proofHash);
    event SessionCompleted(
        uint256 indexed jobId, uint256 totalTokensUsed, uint256 hostEarnings, uint256 userRefund
    );
    event SessionTimedOut(uint256 indexed jobId, uint256 totalTokensUsed, uint256 hostEarnings, uint256 userRefund);
    event TreasuryCredited(uint256 indexed jobId, address indexed token, uint256 amount);
    event TreasuryWithdrawn(address indexed token, address indexed treasury, uint256 amount);
    /// @notice The requester could not be paid directly and may withdraw the refund.
    event RefundCredited(uint256 indexed jobId, address indexed requester, address indexed token, uint256 amount);
    event RefundWithdrawn(address indexed requester, address indexed token, address recipient, uint256 amount);
    event DepositLimitsChanged(address indexed token, uint256 minimum, uint256 maximum);
    event TreasuryChanged(address indexed treasury);
    event ProofSystemChanged(address indexed proofSystem);
    event IdleTimeoutChanged(uint256 secondsIdle);

    error UnknownJob(uint256 jobId);
    error SessionNotActive(uint256 jobId, SessionStatus status);
    error NotAssignedHost(address caller, address host);
    error NotParticipant(address caller);
    error TooFewTokens(uint256 claimed, uint256 minimum);
    error ClaimTooFast(uint256 claimed, uint256 allowed);
    error ExceedsDeposit(uint256 claimed, uint256 affordable);
    error ProofAlreadyUsed(bytes32 proofHash);
    error ProofRejected(bytes32 proofHash);
    error DisputeWindowOpen(uint256 until);
    error SessionNotTimedOut(uint256 jobId, uint256 deadline);
    error TokenNotAccepted(address token);
    error DepositTooSmall(uint256 deposit, uint256 minimum);
    error DepositTooLarge(uint256 deposit, uint256 maximum);
    error DepositBelowProofInterval(uint256 affordable, uint256 proofInterval);
    error DepositNotReceived(uint256 expected, uint256 received);
    error HostNotRegistered(address host);
    error HostNotActive(address host);
    error ZeroPrice();
    error PriceBelowMinimum(uint256 price, uint256 minimum);
    error DurationOutOfRange(uint256 duration, uint256 maximum);
    error ProofIntervalTooSmall(uint256 proofInterval, uint256 minimum);
    error NothingToRefund(address requester, address token);
    error NothingForTreasury(address token);
    error NotTreasury(address caller);
    error FeeTooHigh(uint256 feeBasisPoints);
    error RateOutOfRange(uint256 tokensPerSecond);
    error IdleTimeoutOutOfRange(uint256 secondsIdle);
    error InvalidDepositLimits(uint256 minimum, uint256 maximum);
}
