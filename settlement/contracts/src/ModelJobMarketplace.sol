// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title The marketplace in which a session names its model, as deployed on Base Sepolia since February 2026
/// @notice An interface only: that contract is not this repository's. Only the hash of a proof goes on the chain.
///         Claims are recorded as they are accepted and paid at the end of the session; prices are for
///         PRICE_PRECISION tokens. Refusals are short reason strings.
interface ModelJobMarketplace {
    event SessionJobCreated(uint256 indexed jobId, address indexed depositor, address indexed host, uint256 deposit);
    event SessionJobCreatedForModel(
        uint256 indexed jobId, address indexed depositor, address indexed host, bytes32 modelId, uint256 deposit
    );
    event ProofSubmitted(
        uint256 indexed jobId,
        address indexed host,
        uint256 tokensClaimed,
        bytes32 proofHash,
        string proofCID,
        string deltaCID
    );
    /// @dev Also emitted by a time-out, before its SessionTimedOut. `hostEarnings` is net of the treasury's fee.
    event SessionCompleted(uint256 indexed jobId, uint256 totalTokensUsed, uint256 hostEarnings, uint256 userRefund);
    event SessionCompletedBy(
        uint256 indexed jobId,
        address indexed completedBy,
        uint256 tokensUsed,
        uint256 paymentAmount,
        uint256 refundAmount
    );
    event SessionTimedOut(uint256 indexed jobId, uint256 hostEarnings, uint256 userRefund);
    /// @notice The depositor could not be paid directly; the refund waits as its deposit.
    event RefundCreditedToDeposit(
        uint256 indexed jobId, address indexed depositor, uint256 amount, address indexed token
    );

    /// @param pricePerToken for PRICE_PRECISION tokens
    /// @param proofTimeoutWindow seconds without a claim after which anyone may end the session
    function createSessionJobForModel(
        address host,
        bytes32 modelId,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval,
        uint256 proofTimeoutWindow
    ) external payable returns (uint256 jobId);

    function createSessionJobForModelWithToken(
        address host,
        bytes32 modelId,
        address token,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval,
        uint256 proofTimeoutWindow
    ) external returns (uint256 jobId);

    function submitProofOfWork(
        uint256 jobId,
        uint256 tokensClaimed,
        bytes32 proofHash,
        string calldata proofCID,
        string calldata deltaCID
    ) external;

    function completeSessionJob(uint256 jobId, string calldata conversationCID) external;

    function triggerSessionTimeout(uint256 jobId) external;

    /// @notice All zeros, hence "active", for a job that does not exist.
    function sessionJobs(uint256 jobId)
        external
        view
        returns (
            uint256 id,
            address depositor,
            address host,
            address paymentToken,
            uint256 deposit,
            uint256 pricePerToken,
            uint256 tokensUsed,
            uint256 maxDuration,
            uint256 startTime,
            uint256 lastProofTime,
            uint256 proofInterval,
            uint256 proofTimeoutWindow,
            uint8 status,
            uint256 withdrawnByHost,
            uint256 refundedToUser,
            string memory conversationCID,
            bytes32 lastProofHash,
            string memory lastProofCID
        );

    function sessionModel(uint256 jobId) external view returns (bytes32 modelId);

    /// @notice Reverts without a reason past the last index.
    function hostSessions(address host, uint256 index) external view returns (uint256 jobId);

    function feeBasisPoints() external view returns (uint256);

    function disputeWindow() external view returns (uint256);

    function minTokensFee() external view returns (uint256);

    function MIN_PROVEN_TOKENS() external view returns (uint256);

    function PRICE_PRECISION() external view returns (uint256);

    function treasuryAddress() external view returns (address);

    function nextJobId() external view returns (uint256);

    function getDepositBalance(address account, address token) external view returns (uint256);

    function accumulatedTreasuryNative() external view returns (uint256);

    function accumulatedTreasuryTokens(address token) external view returns (uint256);
}
