// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {Payments, ZeroAddress} from "./Payments.sol";

/// @title What hosts have earned and not yet withdrawn
/// @notice Every balance is backed: a credit without the money behind it reverts. A host withdraws to itself.
contract HostEarnings is Ownable2Step, ReentrancyGuardTransient {
    mapping(address caller => bool) public authorizedCallers;
    /// @notice The sum of all hosts' balances in a token (address(0) is ETH).
    mapping(address token => uint256) public outstanding;
    mapping(address host => mapping(address token => uint256)) private _balances;

    event EarningsCredited(address indexed host, address indexed token, uint256 amount, uint256 newBalance);
    event EarningsWithdrawn(address indexed host, address indexed token, uint256 amount, uint256 remainingBalance);
    event CallerAuthorized(address indexed caller, bool authorized);

    error NotAuthorizedCaller(address caller);
    error ZeroAmount();
    error WrongValue(uint256 expected, uint256 sent);
    error UnbackedCredit(uint256 owed, uint256 held);
    error InsufficientEarnings(uint256 requested, uint256 available);
    error NothingToWithdraw(address host);

    constructor() Ownable(msg.sender) {}

    function setAuthorizedCaller(address caller, bool authorized) external onlyOwner {
        if (caller == address(0)) revert ZeroAddress();
        authorizedCallers[caller] = authorized;
        emit CallerAuthorized(caller, authorized);
    }

    /// @notice Credits a host. ETH comes with the call; tokens must have been transferred before it.
    function creditEarnings(address host, uint256 amount, address token) external payable nonReentrant {
        if (!authorizedCallers[msg.sender]) revert NotAuthorizedCaller(msg.sender);
        if (host == address(0)) revert ZeroAddress();
        if (amount == 0) revert ZeroAmount();
        uint256 expected = token == address(0) ? amount : 0;
        if (msg.value != expected) revert WrongValue(expected, msg.value);
        uint256 owed = outstanding[token] + amount;
        uint256 held = token == address(0) ? address(this).balance : IERC20(token).balanceOf(address(this));
        if (held < owed) revert UnbackedCredit(owed, held);
        outstanding[token] = owed;
        uint256 balance = _balances[host][token] + amount;
        _balances[host][token] = balance;
        emit EarningsCredited(host, token, amount, balance);
    }

    /// @notice Pays the caller `amount` of its earnings in `token`.
    function withdraw(uint256 amount, address token) external nonReentrant {
        if (amount == 0) revert ZeroAmount();
        uint256 available = _balances[msg.sender][token];
        if (amount > available) revert InsufficientEarnings(amount, available);
        _withdraw(amount, token);
    }

    /// @notice Pays the caller all its earnings in `token`.
    function withdrawAll(address token) external nonReentrant {
        uint256 amount = _balances[msg.sender][token];
        if (amount == 0) revert NothingToWithdraw(msg.sender);
        _withdraw(amount, token);
    }

    /// @notice Pays the caller all its earnings in each of `tokens`; those without earnings are passed over.
    function withdrawMultiple(address[] calldata tokens) external nonReentrant {
        bool paid = false;
        for (uint256 i = 0; i < tokens.length; ++i) {
            uint256 amount = _balances[msg.sender][tokens[i]];
            if (amount == 0) continue;
            _withdraw(amount, tokens[i]);
            paid = true;
        }
        if (!paid) revert NothingToWithdraw(msg.sender);
    }

    function getBalance(address host, address token) external view returns (uint256) {
        return _balances[host][token];
    }

    function getBalances(address host, address[] calldata tokens) external view returns (uint256[] memory balances) {
        balances = new uint256[](tokens.length);
        for (uint256 i = 0; i < tokens.length; ++i) {
            balances[i] = _balances[host][tokens[i]];
        }
    }

    function _withdraw(uint256 amount, address token) private {
        uint256 remaining = _balances[msg.sender][token] - amount;
        _balances[msg.sender][token] = remaining;
        outstanding[token] -= amount;
        emit EarningsWithdrawn(msg.sender, token, amount, remaining);
        Payments.pay(token, msg.sender, amount);
    }
}
