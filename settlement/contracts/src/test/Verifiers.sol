// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {Claim, IProofVerifier} from "../IProofVerifier.sol";

/// @notice A stateful verifier: remembers the last claim, believes bodies that say "true".
contract RecordingVerifier is IProofVerifier {
    bytes4 public constant selector = bytes4(keccak256("fabstir.recording.test"));
    Claim public lastClaim;

    function verifyClaim(Claim calldata claim, bytes calldata body) external returns (bool) {
        lastClaim = claim;
        return keccak256(body) == keccak256("true");
    }
}
