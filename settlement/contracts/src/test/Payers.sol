// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {JobMarketplace} from "../JobMarketplace.sol";

/// @notice A payer that takes back no ETH, and one that uses the refund to call the marketplace again.
contract RejectingPayer {
    JobMarketplace public immutable marketplace;
    bool public attacks;
    bool public attackSucceeded;

    error NoRefundsHere();

    constructor(JobMarketplace marketplace_, bool attacks_) payable {
        marketplace = marketplace_;
        attacks = attacks_;
    }

    receive() external payable {
        if (!attacks) revert NoRefundsHere();
        (attackSucceeded,) = address(marketplace).call(abi.encodeCall(marketplace.completeSessionJob, (1, "again")));
    }

    function open(address host, uint256 deposit, uint256 price) external returns (uint256) {
        return marketplace.createSessionJob{value: deposit}(host, price, 1 days, 100);
    }

    function withdrawRefund() external {
        marketplace.withdrawRefund(address(0));
    }

    function withdrawRefundTo(address recipient) external {
        marketplace.withdrawRefundTo(address(0), recipient);
    }

    function unregister() external {
        marketplace.nodeRegistry().unregisterNode();
    }
}
