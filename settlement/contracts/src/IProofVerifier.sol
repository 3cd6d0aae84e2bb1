// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @notice What a proof has to be about. `marketplace` is the caller that the proof system has authorised.
struct Claim {
    address marketplace;
    uint256 jobId;
    address host;
    uint256 tokensBefore;
    uint256 tokensClaimed;
}

/// @title One kind of proof
/// @dev `verifyClaim` may change state, so that a verifier can chain the claims of a job; such a verifier
///      must refuse any caller but its proof system.
interface IProofVerifier {
    /// @notice The first four bytes of every proof of this kind.
    function selector() external view returns (bytes4);

    /// @param body the proof without its selector
    /// @return whether the body proves the claim
    function verifyClaim(Claim calldata claim, bytes calldata body) external returns (bool);
}
