// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {HostEarnings} from "../HostEarnings.sol";
import {ModelJobMarketplace} from "../ModelJobMarketplace.sol";
import {ModelRateLimits} from "../ModelRateLimits.sol";
import {ModelRegistry} from "../ModelRegistry.sol";
import {NodeRegistry} from "../NodeRegistry.sol";

/// @notice This repository's model registry with that generation's rate limits.
contract RatedModelRegistry is ModelRegistry, ModelRateLimits {
    uint256 public constant DEFAULT_RATE_LIMIT = 2000;
    mapping(bytes32 modelId => uint256) private _limits;

    function setModelRateLimit(bytes32 modelId, uint256 tokensPerSecond) external onlyOwner {
        _limits[modelId] = tokensPerSecond;
    }

    function getModelRateLimit(bytes32 modelId) external view returns (uint256) {
        return _limits[modelId] == 0 ? DEFAULT_RATE_LIMIT : _limits[modelId];
    }
}

/// @title Stand-in for the marketplace with models: its ABI, its refusals and its way of paying
/// @dev Written from what that contract is documented and seen to do. Its quirks are kept: an unknown job is
///      active with no host, the first claim must reach `proofInterval`, the host's dispute window begins anew
///      with each claim, a used proof is refused over all jobs, an early end costs the depositor a fee.
contract ModelStandIn is ModelJobMarketplace {
    using SafeERC20 for IERC20;

    struct SessionJob {
        uint256 id;
        address depositor;
        address host;
        address paymentToken;
        uint256 deposit;
        uint256 pricePerToken;
        uint256 tokensUsed;
        uint256 maxDuration;
        uint256 startTime;
        uint256 lastProofTime;
        uint256 proofInterval;
        uint256 proofTimeoutWindow;
        uint8 status;
        uint256 withdrawnByHost;
        uint256 refundedToUser;
        string conversationCID;
        bytes32 lastProofHash;
        string lastProofCID;
    }

    uint256 public constant MIN_DEPOSIT = 0.0001 ether;
    uint256 public constant USDC_MIN_DEPOSIT = 500_000;
    uint256 public constant USDC_MAX_DEPOSIT = 1_000_000 * 10 ** 6;
    uint256 public constant MIN_PROVEN_TOKENS = 100;
    uint256 public constant PRICE_PRECISION = 1000;
    uint8 private constant ACTIVE = 0;
    uint8 private constant COMPLETED = 1;
    uint8 private constant TIMED_OUT = 2;

    NodeRegistry public immutable nodeRegistry;
    RatedModelRegistry public immutable modelRegistry;
    HostEarnings public immutable hostEarnings;
    address public immutable usdc;
    uint256 public immutable feeBasisPoints;
    uint256 public immutable disputeWindow;

    uint256 public nextJobId = 1;
    uint256 public minTokensFee = 1000;
    address public treasuryAddress;
    bool public paused;
    uint256 public accumulatedTreasuryNative;
    mapping(address token => uint256) public accumulatedTreasuryTokens;
    mapping(uint256 jobId => SessionJob) public sessionJobs;
    mapping(uint256 jobId => bytes32) public sessionModel;
    mapping(address host => uint256[]) public hostSessions;
    mapping(bytes32 proofHash => bool) private _used;
    mapping(address account => mapping(address token => uint256)) public getDepositBalance;

    error EnforcedPause();

    constructor(
        NodeRegistry nodeRegistry_,
        RatedModelRegistry modelRegistry_,
        HostEarnings hostEarnings_,
        uint256 feeBasisPoints_,
        uint256 disputeWindow_,
        address usdc_
    ) {
        (nodeRegistry, modelRegistry, hostEarnings) = (nodeRegistry_, modelRegistry_, hostEarnings_);
        (feeBasisPoints, disputeWindow, usdc) = (feeBasisPoints_, disputeWindow_, usdc_);
        treasuryAddress = msg.sender;
    }

    modifier whenNotPaused() {
        if (paused) revert EnforcedPause();
        _;
    }

    function setPaused(bool paused_) external {
        require(msg.sender == treasuryAddress, "Not admin");
        paused = paused_;
    }

    function createSessionJobForModel(
        address host,
        bytes32 modelId,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval,
        uint256 proofTimeoutWindow
    ) external payable whenNotPaused returns (uint256 jobId) {
        require(msg.value >= MIN_DEPOSIT, "Low deposit");
        require(msg.value <= 1000 ether, "Over max");
        jobId = _open(host, modelId, address(0), msg.value, pricePerToken);
        _setTimes(sessionJobs[jobId], maxDuration, proofInterval, proofTimeoutWindow);
    }

    function createSessionJobForModelWithToken(
        address host,
        bytes32 modelId,
        address token,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval,
        uint256 proofTimeoutWindow
    ) external whenNotPaused returns (uint256 jobId) {
        require(token == usdc, "Bad token");
        require(deposit >= USDC_MIN_DEPOSIT, "Low deposit");
        require(deposit <= USDC_MAX_DEPOSIT, "Over max");
        jobId = _open(host, modelId, token, deposit, pricePerToken);
        _setTimes(sessionJobs[jobId], maxDuration, proofInterval, proofTimeoutWindow);
        IERC20(token).safeTransferFrom(msg.sender, address(this), deposit);
    }

    function submitProofOfWork(
        uint256 jobId,
        uint256 tokensClaimed,
        bytes32 proofHash,
        string calldata proofCID,
        string calldata deltaCID
    ) external whenNotPaused {
        SessionJob storage job = sessionJobs[jobId];
        require(job.status == ACTIVE, "Not active");
        require(msg.sender == job.host, "Not host");
        require(nodeRegistry.isActiveNode(job.host), "Host not active");
        require(tokensClaimed >= MIN_PROVEN_TOKENS, "Min tokens");
        require(job.tokensUsed != 0 || tokensClaimed >= job.proofInterval, "Low first");
        uint256 limit = modelRegistry.getModelRateLimit(sessionModel[jobId]);
        require(tokensClaimed <= (block.timestamp - job.lastProofTime) * limit, "Too many");
        uint256 affordable = (job.deposit * PRICE_PRECISION) / job.pricePerToken;
        require(job.tokensUsed + tokensClaimed <= affordable, "Over dep");
        require(!_used[proofHash], "Proof already used");
        _used[proofHash] = true;
        (job.lastProofHash, job.lastProofCID) = (proofHash, proofCID);
        job.tokensUsed += tokensClaimed;
        job.lastProofTime = block.timestamp;
        emit ProofSubmitted(jobId, msg.sender, tokensClaimed, proofHash, proofCID, deltaCID);
    }

    function completeSessionJob(uint256 jobId, string calldata conversationCID) external {
        SessionJob storage job = sessionJobs[jobId];
        require(job.status == ACTIVE, "Not active");
        require(msg.sender == job.depositor || msg.sender == job.host, "Not depositor or host");
        if (msg.sender != job.depositor) {
            require(block.timestamp >= job.lastProofTime + disputeWindow, "Dispute wait");
        }
        job.status = COMPLETED;
        job.conversationCID = conversationCID;
        _settle(job);
    }

    function triggerSessionTimeout(uint256 jobId) external {
        SessionJob storage job = sessionJobs[jobId];
        require(job.status == ACTIVE, "Not active");
        bool overdue = block.timestamp > job.startTime + job.maxDuration;
        require(overdue || block.timestamp > job.lastProofTime + job.proofTimeoutWindow, "Not timeout");
        job.status = TIMED_OUT;
        _settle(job);
        emit SessionTimedOut(jobId, job.withdrawnByHost, job.refundedToUser);
    }

    function withdrawNative(uint256 amount) external {
        require(getDepositBalance[msg.sender][address(0)] >= amount, "Low balance");
        getDepositBalance[msg.sender][address(0)] -= amount;
        (bool sent,) = msg.sender.call{value: amount}("");
        require(sent, "ETH failed");
    }

    function withdrawToken(address token, uint256 amount) external {
        require(getDepositBalance[msg.sender][token] >= amount, "Low balance");
        getDepositBalance[msg.sender][token] -= amount;
        IERC20(token).safeTransfer(msg.sender, amount);
    }

    function _open(address host, bytes32 modelId, address token, uint256 deposit, uint256 pricePerToken)
        private
        returns (uint256 jobId)
    {
        require(pricePerToken > 0, "Bad price");
        require(host != address(0), "No host");
        require(nodeRegistry.isActiveNode(host), "Host not active");
        require(modelRegistry.isModelApproved(modelId), "Bad model");
        require(nodeRegistry.nodeSupportsModel(host, modelId), "No model");
        jobId = nextJobId++;
        SessionJob storage job = sessionJobs[jobId];
        (job.id, job.depositor, job.host, job.paymentToken) = (jobId, msg.sender, host, token);
        (job.deposit, job.pricePerToken) = (deposit, pricePerToken);
        (job.startTime, job.lastProofTime) = (block.timestamp, block.timestamp);
        sessionModel[jobId] = modelId;
        hostSessions[host].push(jobId);
        emit SessionJobCreated(jobId, msg.sender, host, deposit);
        emit SessionJobCreatedForModel(jobId, msg.sender, host, modelId, deposit);
    }

    function _setTimes(SessionJob storage job, uint256 duration, uint256 interval, uint256 window) private {
        require(duration > 0 && duration <= 365 days, "Bad dur");
        require(interval > 0, "Bad interval");
        require(window >= 60 && window <= 3600, "Bad timeout");
        require(interval >= MIN_PROVEN_TOKENS, "Low interval");
        require((job.deposit * PRICE_PRECISION) / job.pricePerToken >= interval, "Low deposit");
        (job.maxDuration, job.proofInterval, job.proofTimeoutWindow) = (duration, interval, window);
    }

    function _settle(SessionJob storage job) private {
        address token = job.paymentToken;
        uint256 gross = (job.tokensUsed * job.pricePerToken) / PRICE_PRECISION;
        uint256 fee = (gross * feeBasisPoints) / 10_000;
        uint256 cost = gross;
        if (job.tokensUsed == 0 && job.status == COMPLETED && msg.sender == job.depositor) {
            // The treasury takes no part of what an early end costs.
            uint256 early = (minTokensFee * job.pricePerToken) / PRICE_PRECISION;
            cost = early < job.deposit ? early : job.deposit;
        }
        (job.withdrawnByHost, job.refundedToUser) = (cost - fee, job.deposit - cost);
        if (token == address(0)) accumulatedTreasuryNative += fee;
        else accumulatedTreasuryTokens[token] += fee;
        if (job.withdrawnByHost > 0) {
            if (token != address(0)) IERC20(token).safeTransfer(address(hostEarnings), job.withdrawnByHost);
            uint256 value = token == address(0) ? job.withdrawnByHost : 0;
            hostEarnings.creditEarnings{value: value}(job.host, job.withdrawnByHost, token);
        }
        if (job.refundedToUser > 0) _refund(job, token, job.refundedToUser);
        emit SessionCompleted(job.id, job.tokensUsed, job.withdrawnByHost, job.refundedToUser);
        emit SessionCompletedBy(job.id, msg.sender, job.tokensUsed, gross, job.refundedToUser);
    }

    function _refund(SessionJob storage job, address token, uint256 amount) private {
        bool paid;
        if (token == address(0)) (paid,) = job.depositor.call{value: amount}("");
        else paid = IERC20(token).trySafeTransfer(job.depositor, amount);
        if (paid) return;
        getDepositBalance[job.depositor][token] += amount;
        emit RefundCreditedToDeposit(job.id, job.depositor, amount, token);
    }
}
