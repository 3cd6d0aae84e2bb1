// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {TestUSDC} from "../TestUSDC.sol";

/// @notice A token that keeps one percent of every transfer, or refuses to pay a blocked account.
contract AwkwardToken is TestUSDC {
    bool public takesFee;
    mapping(address account => bool) public blocked;

    error Blocked(address account);

    function setTakesFee(bool takesFee_) external {
        takesFee = takesFee_;
    }

    function setBlocked(address account, bool blocked_) external {
        blocked[account] = blocked_;
    }

    function _update(address from, address to, uint256 value) internal override {
        if (blocked[to]) revert Blocked(to);
        uint256 fee = takesFee && from != address(0) ? value / 100 : 0;
        super._update(from, to, value - fee);
        if (fee != 0) super._update(from, address(0), fee);
    }
}
