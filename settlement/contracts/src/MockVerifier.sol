// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {Claim, IProofVerifier} from "./IProofVerifier.sol";

/// @title A verifier that believes any body which is not empty: for testing only
/// @notice A proof system that guards value must not list it.
contract MockVerifier is IProofVerifier {
    /// @inheritdoc IProofVerifier
    bytes4 public constant selector = bytes4(keccak256("fabstir.mock.v1"));

    /// @inheritdoc IProofVerifier
    function verifyClaim(Claim calldata, bytes calldata body) external pure returns (bool) {
        return body.length != 0;
    }
}
