// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

error ZeroAddress();
error PaymentFailed(address recipient, uint256 amount);

/// @title Paying out ETH (address(0)) and ERC-20 tokens alike
library Payments {
    using SafeERC20 for IERC20;

    /// @dev Enough for a smart wallet's receive function, too little to make a settlement expensive.
    uint256 internal constant PUSH_GAS = 50_000;

    /// @notice Pays `amount` or reverts.
    function pay(address token, address recipient, uint256 amount) internal {
        if (token != address(0)) {
            IERC20(token).safeTransfer(recipient, amount);
            return;
        }
        (bool paid,) = recipient.call{value: amount}("");
        if (!paid) revert PaymentFailed(recipient, amount);
    }

    /// @notice Pays `amount` with bounded gas; a recipient that refuses does not revert the caller.
    /// @dev A caller cannot make it fail by sending too little gas: a callee that gets less than PUSH_GAS
    ///      leaves 1/64 of it here, with which nothing can be recorded, and the whole transaction reverts.
    /// @return paid whether the recipient has the money
    function tryPay(address token, address recipient, uint256 amount) internal returns (bool paid) {
        if (token != address(0)) return IERC20(token).trySafeTransfer(recipient, amount);
        (paid,) = recipient.call{value: amount, gas: PUSH_GAS}("");
    }
}
