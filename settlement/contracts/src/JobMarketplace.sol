// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {HostEarnings} from "./HostEarnings.sol";
import {MarketplaceTerms} from "./MarketplaceTerms.sol";
import {NodeRegistry} from "./NodeRegistry.sol";
import {Payments} from "./Payments.sol";
import {ProofSystem} from "./ProofSystem.sol";

/// @title Sessions of inference, paid per generated token out of a deposit
/// @notice A user deposits for one host. The host claims the tokens it generated, each claim with a proof, and
///         each accepted claim pays host and treasury at once; the end of the session refunds what is left.
///         Conservation: deposit = host + treasury + refund for every ended session, to the last unit.
contract JobMarketplace is MarketplaceTerms {
    using SafeERC20 for IERC20;

    uint256 public nextJobId = 1;
    /// @notice Proofs that a claim has used, by keccak256 of their bytes, over all jobs.
    mapping(bytes32 proofHash => bool) public usedProofs;
    /// @notice Refunds that could not be pushed and wait for `withdrawRefund`.
    mapping(address requester => mapping(address token => uint256)) public pendingRefund;

    mapping(uint256 jobId => SessionJob) private _jobs;
    mapping(address host => uint256[]) private _hostSessions;
    mapping(address requester => uint256[]) private _userSessions;

    constructor(
        NodeRegistry nodeRegistry_,
        HostEarnings hostEarnings_,
        ProofSystem proofSystem_,
        address treasury_,
        uint256 feeBasisPoints_,
        uint256 disputeWindow_,
        uint256 expectedTokensPerSecond_,
        uint256 idleTimeout_
    )
        MarketplaceTerms(
            nodeRegistry_,
            hostEarnings_,
            proofSystem_,
            treasury_,
            feeBasisPoints_,
            disputeWindow_,
            expectedTokensPerSecond_,
            idleTimeout_
        )
    {}

    /// @notice Opens a session paid in ETH; the value sent is the deposit.
    /// @param pricePerToken wei for each generated token
    /// @param maxDuration seconds after which anyone may end the session
    /// @param proofInterval tokens between claims that the parties agree on; the deposit must pay for one
    function createSessionJob(address host, uint256 pricePerToken, uint256 maxDuration, uint256 proofInterval)
        external
        payable
        nonReentrant
        returns (uint256 jobId)
    {
        _checkSession(host, address(0), msg.value, pricePerToken, maxDuration, proofInterval);
        return _open(host, address(0), msg.value, pricePerToken, maxDuration, proofInterval);
    }

    /// @notice Opens a session paid in an accepted ERC-20, of which `deposit` must have been approved.
    /// @dev A token that delivers less than was sent is refused.
    function createSessionJobWithToken(
        address host,
        address token,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) external nonReentrant returns (uint256 jobId) {
        if (token == address(0)) revert TokenNotAccepted(token);
        _checkSession(host, token, deposit, pricePerToken, maxDuration, proofInterval);
        jobId = _open(host, token, deposit, pricePerToken, maxDuration, proofInterval);
        uint256 before = IERC20(token).balanceOf(address(this));
        IERC20(token).safeTransferFrom(msg.sender, address(this), deposit);
        uint256 received = IERC20(token).balanceOf(address(this)) - before;
        if (received != deposit) revert DepositNotReceived(deposit, received);
    }

    /// @notice Claims `tokensClaimed` tokens generated since the last claim; pays host and treasury.
    /// @param tokensClaimed at least MIN_PROVEN_TOKENS: an increment, never a running total
    /// @param proof verifier selector (4 bytes) and that verifier's body
    function submitProofOfWork(uint256 jobId, uint256 tokensClaimed, bytes calldata proof) external nonReentrant {
        _claim(_activeJob(jobId), tokensClaimed, proof, MIN_PROVEN_TOKENS);
    }

    /// @notice Ends a session and refunds what is left: the requester at any time, the host after the
    ///         dispute window.
    function completeSessionJob(uint256 jobId, string calldata conversationCID) external nonReentrant {
        SessionJob storage job = _activeJob(jobId);
        if (msg.sender != job.requester) {
            if (msg.sender != job.host) revert NotParticipant(msg.sender);
            _checkDisputeWindow(job);
        }
        _complete(job, conversationCID);
    }

    /// @notice The host's last claim, of one token or more, and the end of the session in one transaction.
    function completeSessionJobWithProof(
        uint256 jobId,
        uint256 tokensClaimed,
        bytes calldata proof,
        string calldata conversationCID
    ) external nonReentrant {
        SessionJob storage job = _activeJob(jobId);
        _claim(job, tokensClaimed, proof, 1);
        _checkDisputeWindow(job);
        _complete(job, conversationCID);
    }

    /// @notice Ends a session that outlived its duration or its idle timeout. Anyone may call it.
    function triggerSessionTimeout(uint256 jobId) external nonReentrant {
        SessionJob storage job = _activeJob(jobId);
        uint256 deadline = _deadline(job);
        if (block.timestamp <= deadline) revert SessionNotTimedOut(jobId, deadline);
        uint256 refund = _close(job, SessionStatus.TimedOut);
        emit SessionTimedOut(jobId, job.tokensUsed, job.withdrawnByHost, refund);
        _refund(job, refund);
    }

    /// @notice Pays the caller the refunds that could not be pushed to it.
    function withdrawRefund(address token) external {
        withdrawRefundTo(token, msg.sender);
    }

    /// @notice Pays the caller's refunds to `recipient`, for a caller that cannot receive them itself.
    function withdrawRefundTo(address token, address recipient) public nonReentrant {
        uint256 amount = pendingRefund[msg.sender][token];
        if (amount == 0) revert NothingToRefund(msg.sender, token);
        pendingRefund[msg.sender][token] = 0;
        emit RefundWithdrawn(msg.sender, token, recipient, amount);
        Payments.pay(token, recipient, amount);
    }

    /// @notice A session's row, flat as in the mission documents' marketplace.
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
            SessionStatus status,
            uint256 withdrawnByHost,
            uint256 refundedToUser,
            string memory conversationCID,
            uint256 idleTimeout,
            uint256 paidToTreasury
        )
    {
        SessionJob storage job = _knownJob(jobId);
        (id, requester, host, paymentToken) = (job.id, job.requester, job.host, job.paymentToken);
        (deposit, pricePerToken, tokensUsed) = (job.deposit, job.pricePerToken, job.tokensUsed);
        (maxDuration, startTime, lastProofTime) = (job.maxDuration, job.startTime, job.lastProofTime);
        (proofInterval, status, withdrawnByHost) = (job.proofInterval, job.status, job.withdrawnByHost);
        (refundedToUser, conversationCID) = (job.refundedToUser, job.conversationCID);
        (idleTimeout, paidToTreasury) = (job.idleTimeout, job.paidToTreasury);
    }

    /// @notice The last second in which the session cannot time out, were there no further claim.
    function sessionDeadline(uint256 jobId) external view returns (uint256) {
        return _deadline(_knownJob(jobId));
    }

    /// @notice Tokens that the deposit still pays for; 0 once the session has ended.
    function affordableTokens(uint256 jobId) external view returns (uint256) {
        SessionJob storage job = _knownJob(jobId);
        return job.status == SessionStatus.Active ? _affordable(job) : 0;
    }

    function hostSessions(address host, uint256 index) external view returns (uint256 jobId) {
        return _hostSessions[host][index];
    }

    function userSessions(address requester, uint256 index) external view returns (uint256 jobId) {
        return _userSessions[requester][index];
    }

    function hostSessionCount(address host) external view returns (uint256) {
        return _hostSessions[host].length;
    }

    function userSessionCount(address requester) external view returns (uint256) {
        return _userSessions[requester].length;
    }

    /// @notice Up to `limit` job ids of a host, oldest first, from `offset` on; empty past the end.
    function hostSessionPage(address host, uint256 offset, uint256 limit) external view returns (uint256[] memory) {
        return _page(_hostSessions[host], offset, limit);
    }

    /// @notice Up to `limit` job ids of a requester, oldest first, from `offset` on; empty past the end.
    function userSessionPage(address requester, uint256 offset, uint256 limit)
        external
        view
        returns (uint256[] memory)
    {
        return _page(_userSessions[requester], offset, limit);
    }

    function _checkSession(
        address host,
        address token,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) private view {
        DepositLimits memory limits = depositLimits[token];
        if (limits.maximum == 0) revert TokenNotAccepted(token);
        if (deposit < limits.minimum) revert DepositTooSmall(deposit, limits.minimum);
        if (deposit > limits.maximum) revert DepositTooLarge(deposit, limits.maximum);
        if (pricePerToken == 0) revert ZeroPrice();
        if (maxDuration == 0 || maxDuration > MAX_DURATION) revert DurationOutOfRange(maxDuration, MAX_DURATION);
        if (proofInterval < MIN_PROVEN_TOKENS) revert ProofIntervalTooSmall(proofInterval, MIN_PROVEN_TOKENS);
        uint256 affordable = deposit / pricePerToken;
        if (affordable < proofInterval) revert DepositBelowProofInterval(affordable, proofInterval);
        if (!nodeRegistry.isRegisteredNode(host)) revert HostNotRegistered(host);
        if (!nodeRegistry.isActiveNode(host)) revert HostNotActive(host);
        uint256 minimum = nodeRegistry.minimumPrice(host, token);
        if (pricePerToken < minimum) revert PriceBelowMinimum(pricePerToken, minimum);
    }

    function _open(
        address host,
        address token,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) private returns (uint256 jobId) {
        jobId = nextJobId++;
        SessionJob storage job = _jobs[jobId];
        job.id = jobId;
        job.requester = msg.sender;
        job.host = host;
        job.paymentToken = token;
        job.deposit = deposit;
        job.pricePerToken = pricePerToken;
        job.maxDuration = maxDuration;
        job.startTime = block.timestamp;
        job.lastProofTime = block.timestamp;
        job.proofInterval = proofInterval;
        job.idleTimeout = idleTimeout;
        _hostSessions[host].push(jobId);
        _userSessions[msg.sender].push(jobId);
        emit SessionJobCreated(jobId, msg.sender, host, deposit);
    }

    /// @dev All effects come before the calls to the proof system and the earnings contract.
    function _claim(SessionJob storage job, uint256 tokensClaimed, bytes calldata proof, uint256 minimum) private {
        if (msg.sender != job.host) revert NotAssignedHost(msg.sender, job.host);
        if (tokensClaimed < minimum) revert TooFewTokens(tokensClaimed, minimum);
        uint256 allowed = 2 * expectedTokensPerSecond * (block.timestamp - job.lastProofTime);
        if (tokensClaimed > allowed) revert ClaimTooFast(tokensClaimed, allowed);
        uint256 affordable = _affordable(job);
        if (tokensClaimed > affordable) revert ExceedsDeposit(tokensClaimed, affordable);
        bytes32 proofHash = keccak256(proof);
        if (usedProofs[proofHash]) revert ProofAlreadyUsed(proofHash);
        usedProofs[proofHash] = true;

        uint256 tokensBefore = job.tokensUsed;
        uint256 gross = tokensClaimed * job.pricePerToken;
        uint256 fee = gross * feeBasisPoints / BASIS_POINTS;
        job.tokensUsed = tokensBefore + tokensClaimed;
        job.lastProofTime = block.timestamp;
        job.withdrawnByHost += gross - fee;
        job.paidToTreasury += fee;
        treasuryBalance[job.paymentToken] += fee;
        emit ProofOfWork(job.id, msg.sender, tokensClaimed, proofHash);
        if (fee != 0) emit TreasuryCredited(job.id, job.paymentToken, fee);

        if (!proofSystem.verifyClaim(job.id, msg.sender, tokensBefore, tokensClaimed, proof)) {
            revert ProofRejected(proofHash);
        }
        _payHost(job.paymentToken, gross - fee);
    }

    function _payHost(address token, uint256 amount) private {
        if (amount == 0) return;
        if (token == address(0)) {
            hostEarnings.creditEarnings{value: amount}(msg.sender, amount, token);
        } else {
            IERC20(token).safeTransfer(address(hostEarnings), amount);
            hostEarnings.creditEarnings(msg.sender, amount, token);
        }
    }

    function _complete(SessionJob storage job, string calldata conversationCID) private {
        job.conversationCID = conversationCID;
        uint256 refund = _close(job, SessionStatus.Completed);
        emit SessionCompleted(job.id, job.tokensUsed, job.withdrawnByHost, refund);
        _refund(job, refund);
    }

    function _close(SessionJob storage job, SessionStatus status) private returns (uint256 refund) {
        job.status = status;
        refund = job.deposit - job.tokensUsed * job.pricePerToken;
        job.refundedToUser = refund;
    }

    /// @dev A requester that cannot be paid keeps a claim on the refund and does not hold up the host.
    function _refund(SessionJob storage job, uint256 amount) private {
        if (amount == 0) return;
        (address requester, address token) = (job.requester, job.paymentToken);
        if (Payments.tryPay(token, requester, amount)) return;
        pendingRefund[requester][token] += amount;
        emit RefundCredited(job.id, requester, token, amount);
    }

    function _checkDisputeWindow(SessionJob storage job) private view {
        uint256 until = job.startTime + disputeWindow;
        if (block.timestamp < until) revert DisputeWindowOpen(until);
    }

    function _affordable(SessionJob storage job) private view returns (uint256) {
        return job.deposit / job.pricePerToken - job.tokensUsed;
    }

    function _deadline(SessionJob storage job) private view returns (uint256) {
        uint256 end = job.startTime + job.maxDuration;
        uint256 idle = job.lastProofTime + job.idleTimeout;
        return end < idle ? end : idle;
    }

    function _knownJob(uint256 jobId) private view returns (SessionJob storage job) {
        job = _jobs[jobId];
        if (job.id == 0) revert UnknownJob(jobId);
    }

    function _activeJob(uint256 jobId) private view returns (SessionJob storage job) {
        job = _knownJob(jobId);
        if (job.status != SessionStatus.Active) revert SessionNotActive(jobId, job.status);
    }

    function _page(uint256[] storage ids, uint256 offset, uint256 limit) private view returns (uint256[] memory page) {
        uint256 count = ids.length;
        if (offset >= count) return page;
        uint256 size = limit < count - offset ? limit : count - offset;
        page = new uint256[](size);
        for (uint256 i = 0; i < size; ++i) {
            page[i] = ids[offset + i];
        }
    }
}
