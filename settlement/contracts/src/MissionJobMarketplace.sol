// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title The marketplace of the mission documents, as deployed on Base Sepolia in September 2025
/// @notice An interface only: that contract is not this repository's. Claims are recorded as they are accepted
///         and paid at the end of the session. Refusals are reason strings.
interface MissionJobMarketplace {
    event SessionJobCreated(uint256 indexed jobId, address indexed requester, address indexed host, uint256 deposit);
    event ProofSubmitted(uint256 indexed jobId, address indexed host, uint256 tokensClaimed, bytes32 proofHash);
    /// @dev Also emitted by a time-out, before its SessionTimedOut. `hostEarnings` is net of the treasury's fee.
    event SessionCompleted(uint256 indexed jobId, uint256 totalTokensUsed, uint256 hostEarnings, uint256 userRefund);
    event SessionTimedOut(uint256 indexed jobId, uint256 hostEarnings, uint256 userRefund);

    function createSessionJob(address host, uint256 pricePerToken, uint256 maxDuration, uint256 proofInterval)
        external
        payable
        returns (uint256 jobId);

    function createSessionJobWithToken(
        address host,
        address token,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) external returns (uint256 jobId);

    function submitProofOfWork(uint256 jobId, uint256 tokensClaimed, bytes calldata proof) external;

    function completeSessionJob(uint256 jobId, string calldata conversationCID) external;

    function triggerSessionTimeout(uint256 jobId) external;

    /// @notice All zeros, hence "active", for a job that does not exist.
    function sessionJobs(uint256 jobId)
        external
        view
        returns (
            uint256 id,
            address requester,
            address host,
            address paymentToken,
            uint256 deposit,
            uint256 pricePerToken,
            uint256 tokensUsed,
            uint256 maxDuration,
            uint256 startTime,
            uint256 lastProofTime,
            uint256 proofInterval,
            uint8 status,
            uint256 withdrawnByHost,
            uint256 refundedToUser,
            string memory conversationCID
        );

    /// @notice Reverts without a reason past the last index.
    function hostSessions(address host, uint256 index) external view returns (uint256 jobId);

    function FEE_BASIS_POINTS() external view returns (uint256);

    function DISPUTE_WINDOW() external view returns (uint256);

    function MIN_PROVEN_TOKENS() external view returns (uint256);

    function treasuryAddress() external view returns (address);

    function nextJobId() external view returns (uint256);

    function accumulatedTreasuryETH() external view returns (uint256);

    function accumulatedTreasuryTokens(address token) external view returns (uint256);
}
