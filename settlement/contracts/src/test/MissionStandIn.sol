// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {HostEarnings} from "../HostEarnings.sol";
import {MissionJobMarketplace} from "../MissionJobMarketplace.sol";

/// @notice Believes a proof of 64 bytes or more whose first 32 were not recorded as spent.
contract MissionProofSystem {
    mapping(bytes32 proofHash => bool) public verifiedProofs;

    function recordVerifiedProof(bytes32 proofHash) external {
        verifiedProofs[proofHash] = true;
    }

    function verifyEKZL(bytes calldata proof, address, uint256 claimedTokens) external view returns (bool) {
        return proof.length >= 64 && claimedTokens != 0 && !verifiedProofs[bytes32(proof[:32])];
    }
}

/// @title Stand-in for the mission documents' marketplace: its ABI, its refusals and its way of paying
/// @dev Written from what that contract is documented to do. Its quirks are kept: an unknown job is active with
///      no host, the idle time-out counts `proofInterval` (tokens) three times as seconds, a requester that
///      rejects ETH blocks the end of the session.
contract MissionStandIn is MissionJobMarketplace {
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
        uint8 status;
        uint256 withdrawnByHost;
        uint256 refundedToUser;
        string conversationCID;
    }

    uint256 public constant MIN_DEPOSIT = 0.0002 ether;
    uint256 public constant USDC_MIN_DEPOSIT = 800_000;
    uint256 public constant MIN_PROVEN_TOKENS = 100;
    uint8 private constant ACTIVE = 0;
    uint8 private constant COMPLETED = 1;
    uint8 private constant TIMED_OUT = 2;

    address public immutable nodeRegistry;
    HostEarnings public immutable hostEarnings;
    uint256 public immutable FEE_BASIS_POINTS;
    uint256 public immutable DISPUTE_WINDOW;
    /// @dev 10 in the original, where it is a literal.
    uint256 private immutable _tokensPerSecond;

    uint256 public nextJobId = 1;
    address public treasuryAddress;
    MissionProofSystem public proofSystem;
    uint256 public accumulatedTreasuryETH;
    mapping(address token => uint256) public accumulatedTreasuryTokens;
    mapping(address token => bool) public acceptedTokens;
    mapping(address token => uint256) public tokenMinDeposits;
    mapping(uint256 jobId => SessionJob) public sessionJobs;
    mapping(address host => uint256[]) public hostSessions;
    mapping(address requester => uint256[]) public userSessions;
    mapping(uint256 jobId => mapping(bytes32 proofHash => bool)) private _submitted;

    constructor(
        address nodeRegistry_,
        HostEarnings hostEarnings_,
        uint256 feeBasisPoints,
        uint256 disputeWindow,
        uint256 tokensPerSecond,
        address usdc
    ) {
        nodeRegistry = nodeRegistry_;
        hostEarnings = hostEarnings_;
        FEE_BASIS_POINTS = feeBasisPoints;
        DISPUTE_WINDOW = disputeWindow;
        _tokensPerSecond = tokensPerSecond;
        treasuryAddress = msg.sender;
        acceptedTokens[usdc] = true;
        tokenMinDeposits[usdc] = USDC_MIN_DEPOSIT;
    }

    function setProofSystem(MissionProofSystem proofSystem_) external {
        require(msg.sender == treasuryAddress, "Only treasury");
        proofSystem = proofSystem_;
    }

    function createSessionJob(address host, uint256 pricePerToken, uint256 maxDuration, uint256 proofInterval)
        external
        payable
        returns (uint256)
    {
        require(msg.value >= MIN_DEPOSIT, "Insufficient deposit");
        return _open(host, address(0), msg.value, pricePerToken, maxDuration, proofInterval);
    }

    function createSessionJobWithToken(
        address host,
        address token,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) external returns (uint256 jobId) {
        require(acceptedTokens[token], "Token not accepted");
        require(tokenMinDeposits[token] > 0, "Token not configured");
        require(deposit >= tokenMinDeposits[token], "Insufficient deposit");
        require(deposit > 0, "Zero deposit");
        jobId = _open(host, token, deposit, pricePerToken, maxDuration, proofInterval);
        require(IERC20(token).transferFrom(msg.sender, address(this), deposit), "Transfer failed");
    }

    function submitProofOfWork(uint256 jobId, uint256 tokensClaimed, bytes calldata proof) external {
        SessionJob storage job = sessionJobs[jobId];
        require(job.status == ACTIVE, "Session not active");
        require(msg.sender == job.host, "Only host can submit proof");
        require(tokensClaimed >= MIN_PROVEN_TOKENS, "Must claim minimum tokens");
        uint256 expected = (block.timestamp - job.lastProofTime) * _tokensPerSecond;
        require(tokensClaimed <= expected * 2, "Excessive tokens claimed");
        require(job.tokensUsed + tokensClaimed <= job.deposit / job.pricePerToken, "Exceeds deposit");
        bytes32 proofHash = keccak256(proof);
        require(!_submitted[jobId][proofHash], "Proof already submitted");
        require(address(proofSystem) != address(0), "Proof system not set");
        require(proofSystem.verifyEKZL(proof, msg.sender, tokensClaimed), "Invalid proof");
        _submitted[jobId][proofHash] = true;
        job.tokensUsed += tokensClaimed;
        job.lastProofTime = block.timestamp;
        emit ProofSubmitted(jobId, msg.sender, tokensClaimed, proofHash);
    }

    function completeSessionJob(uint256 jobId, string calldata conversationCID) external {
        SessionJob storage job = sessionJobs[jobId];
        require(job.status == ACTIVE, "Session not active");
        require(msg.sender == job.requester || msg.sender == job.host, "Unauthorized");
        if (msg.sender != job.requester) {
            require(block.timestamp >= job.startTime + DISPUTE_WINDOW, "Must wait dispute window");
        }
        job.status = COMPLETED;
        job.conversationCID = conversationCID;
        _settle(job);
    }

    function triggerSessionTimeout(uint256 jobId) external {
        SessionJob storage job = sessionJobs[jobId];
        require(job.status == ACTIVE, "Session not active");
        bool overdue = block.timestamp > job.startTime + job.maxDuration;
        bool idle = block.timestamp > job.lastProofTime + job.proofInterval * 3;
        require(overdue || idle, "Session not timed out");
        job.status = TIMED_OUT;
        _settle(job);
        emit SessionTimedOut(jobId, job.withdrawnByHost, job.refundedToUser);
    }

    function _open(
        address host,
        address token,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) private returns (uint256 jobId) {
        require(deposit <= 1000 ether, "Deposit too large");
        require(pricePerToken > 0, "Invalid price");
        require(maxDuration > 0 && maxDuration <= 365 days, "Invalid duration");
        require(proofInterval > 0, "Invalid proof interval");
        require(host != address(0), "Invalid host");
        require(proofInterval >= MIN_PROVEN_TOKENS, "Proof interval too small");
        require(deposit / pricePerToken >= proofInterval, "Deposit too small for proof interval");
        jobId = nextJobId++;
        SessionJob storage job = sessionJobs[jobId];
        (job.id, job.requester, job.host, job.paymentToken) = (jobId, msg.sender, host, token);
        (job.deposit, job.pricePerToken) = (deposit, pricePerToken);
        (job.maxDuration, job.proofInterval) = (maxDuration, proofInterval);
        (job.startTime, job.lastProofTime) = (block.timestamp, block.timestamp);
        hostSessions[host].push(jobId);
        userSessions[msg.sender].push(jobId);
        emit SessionJobCreated(jobId, msg.sender, host, deposit);
    }

    function _settle(SessionJob storage job) private {
        uint256 gross = job.tokensUsed * job.pricePerToken;
        uint256 fee = (gross * FEE_BASIS_POINTS) / 10_000;
        address token = job.paymentToken;
        (job.withdrawnByHost, job.refundedToUser) = (gross - fee, job.deposit - gross);
        if (token == address(0)) {
            accumulatedTreasuryETH += fee;
            if (gross > fee) hostEarnings.creditEarnings{value: gross - fee}(job.host, gross - fee, token);
            (bool sent,) = job.requester.call{value: job.refundedToUser}("");
            require(sent, "ETH refund failed");
        } else {
            accumulatedTreasuryTokens[token] += fee;
            if (gross > fee) {
                require(IERC20(token).transfer(address(hostEarnings), gross - fee), "Transfer failed");
                hostEarnings.creditEarnings(job.host, gross - fee, token);
            }
            require(IERC20(token).transfer(job.requester, job.refundedToUser), "Transfer failed");
        }
        emit SessionCompleted(job.id, job.tokensUsed, job.withdrawnByHost, job.refundedToUser);
    }
}
