// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {HostEarnings} from "./HostEarnings.sol";
import {IJobMarketplace} from "./IJobMarketplace.sol";
import {NodeRegistry} from "./NodeRegistry.sol";
import {Payments, ZeroAddress} from "./Payments.sol";
import {ProofSystem} from "./ProofSystem.sol";

/// @title The terms under which the marketplace trades
/// @notice What decides a live session's money (fee, rate, dispute window) is fixed at deployment. The owner
///         may accept tokens, and choose the treasury, the proof system and the idle timeout of new sessions.
abstract contract MarketplaceTerms is IJobMarketplace, Ownable2Step, ReentrancyGuardTransient {
    uint256 public constant MIN_PROVEN_TOKENS = 100;
    uint256 public constant MAX_DURATION = 365 days;
    uint256 public constant MAX_IDLE_TIMEOUT = 30 days;
    uint256 public constant MIN_ETH_DEPOSIT = 0.0001 ether;
    uint256 public constant MAX_ETH_DEPOSIT = 1000 ether;
    uint256 internal constant BASIS_POINTS = 10_000;
    uint256 internal constant MAX_TOKENS_PER_SECOND = 1e12;

    NodeRegistry public immutable nodeRegistry;
    HostEarnings public immutable hostEarnings;
    /// @notice The treasury's share of each claim, in 1/10000.
    uint256 public immutable feeBasisPoints;
    /// @notice Seconds after a session's start before its host may complete it.
    uint256 public immutable disputeWindow;
    /// @notice A claim may cover up to twice this many tokens for each second since the last one.
    uint256 public immutable expectedTokensPerSecond;

    ProofSystem public proofSystem;
    address public treasury;
    /// @notice Seconds without a claim after which a session created now times out.
    uint256 public idleTimeout;
    mapping(address token => DepositLimits) public depositLimits;
    /// @notice The treasury's fees that wait for withdrawal.
    mapping(address token => uint256) public treasuryBalance;

    constructor(
        NodeRegistry nodeRegistry_,
        HostEarnings hostEarnings_,
        ProofSystem proofSystem_,
        address treasury_,
        uint256 feeBasisPoints_,
        uint256 disputeWindow_,
        uint256 expectedTokensPerSecond_,
        uint256 idleTimeout_
    ) Ownable(msg.sender) {
        if (address(nodeRegistry_) == address(0) || address(hostEarnings_) == address(0)) revert ZeroAddress();
        if (feeBasisPoints_ > BASIS_POINTS) revert FeeTooHigh(feeBasisPoints_);
        if (disputeWindow_ > MAX_DURATION) revert DurationOutOfRange(disputeWindow_, MAX_DURATION);
        if (expectedTokensPerSecond_ == 0 || expectedTokensPerSecond_ > MAX_TOKENS_PER_SECOND) {
            revert RateOutOfRange(expectedTokensPerSecond_);
        }
        nodeRegistry = nodeRegistry_;
        hostEarnings = hostEarnings_;
        feeBasisPoints = feeBasisPoints_;
        disputeWindow = disputeWindow_;
        expectedTokensPerSecond = expectedTokensPerSecond_;
        _setProofSystem(proofSystem_);
        _setTreasury(treasury_);
        _setIdleTimeout(idleTimeout_);
        _setDepositLimits(address(0), MIN_ETH_DEPOSIT, MAX_ETH_DEPOSIT);
    }

    /// @notice Whether new sessions may be paid in `token` (address(0) is ETH).
    function isAcceptedToken(address token) external view returns (bool) {
        return depositLimits[token].maximum != 0;
    }

    /// @notice Accepts an ERC-20 for new sessions, or changes its limits.
    function setAcceptedToken(address token, uint256 minimum, uint256 maximum) external onlyOwner {
        if (token == address(0)) revert ZeroAddress();
        if (minimum == 0 || minimum > maximum) revert InvalidDepositLimits(minimum, maximum);
        _setDepositLimits(token, minimum, maximum);
    }

    /// @notice Accepts no new session in `token`; those that run are settled as agreed.
    function removeAcceptedToken(address token) external onlyOwner {
        if (token == address(0)) revert ZeroAddress();
        if (depositLimits[token].maximum == 0) revert TokenNotAccepted(token);
        _setDepositLimits(token, 0, 0);
    }

    function setProofSystem(ProofSystem proofSystem_) external onlyOwner {
        _setProofSystem(proofSystem_);
    }

    function setTreasury(address treasury_) external onlyOwner {
        _setTreasury(treasury_);
    }

    /// @notice Changes the idle timeout of sessions created from now on.
    function setIdleTimeout(uint256 secondsIdle) external onlyOwner {
        _setIdleTimeout(secondsIdle);
    }

    /// @notice Pays the treasury all its fees in `token`.
    function withdrawTreasury(address token) external nonReentrant {
        if (msg.sender != treasury) revert NotTreasury(msg.sender);
        uint256 amount = treasuryBalance[token];
        if (amount == 0) revert NothingForTreasury(token);
        treasuryBalance[token] = 0;
        emit TreasuryWithdrawn(token, msg.sender, amount);
        Payments.pay(token, msg.sender, amount);
    }

    function _setProofSystem(ProofSystem proofSystem_) private {
        if (address(proofSystem_) == address(0)) revert ZeroAddress();
        proofSystem = proofSystem_;
        emit ProofSystemChanged(address(proofSystem_));
    }

    function _setTreasury(address treasury_) private {
        if (treasury_ == address(0)) revert ZeroAddress();
        treasury = treasury_;
        emit TreasuryChanged(treasury_);
    }

    function _setIdleTimeout(uint256 secondsIdle) private {
        if (secondsIdle == 0 || secondsIdle > MAX_IDLE_TIMEOUT) revert IdleTimeoutOutOfRange(secondsIdle);
        idleTimeout = secondsIdle;
        emit IdleTimeoutChanged(secondsIdle);
    }

    function _setDepositLimits(address token, uint256 minimum, uint256 maximum) private {
        depositLimits[token] = DepositLimits(minimum, maximum);
        emit DepositLimitsChanged(token, minimum, maximum);
    }
}
