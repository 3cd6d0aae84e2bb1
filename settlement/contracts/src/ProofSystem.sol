// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {Claim, IProofVerifier} from "./IProofVerifier.sol";
import {ZeroAddress} from "./Payments.sol";

/// @title Which proofs a marketplace believes
/// @notice Routes a claim's proof, by its first four bytes, to the verifier listed for them.
contract ProofSystem is Ownable2Step {
    mapping(bytes4 selector => IProofVerifier) public verifierOf;
    mapping(address marketplace => bool) public marketplaces;

    event VerifierListed(bytes4 indexed selector, address indexed verifier);
    event VerifierUnlisted(bytes4 indexed selector, address indexed verifier);
    event MarketplaceChanged(address indexed marketplace, bool authorized);

    error NotMarketplace(address caller);
    error ProofTooShort(uint256 length);
    error UnknownVerifier(bytes4 selector);
    error VerifierAlreadyListed(bytes4 selector);

    constructor() Ownable(msg.sender) {}

    function setMarketplace(address marketplace, bool authorized) external onlyOwner {
        if (marketplace == address(0)) revert ZeroAddress();
        marketplaces[marketplace] = authorized;
        emit MarketplaceChanged(marketplace, authorized);
    }

    /// @notice Accepts proofs of the verifier's kind from now on.
    function listVerifier(IProofVerifier verifier) external onlyOwner {
        if (address(verifier) == address(0)) revert ZeroAddress();
        bytes4 selector = verifier.selector();
        if (hasVerifier(selector)) revert VerifierAlreadyListed(selector);
        verifierOf[selector] = verifier;
        emit VerifierListed(selector, address(verifier));
    }

    /// @notice Accepts no further proof with this selector.
    function unlistVerifier(bytes4 selector) external onlyOwner {
        IProofVerifier verifier = verifierOf[selector];
        if (address(verifier) == address(0)) revert UnknownVerifier(selector);
        delete verifierOf[selector];
        emit VerifierUnlisted(selector, address(verifier));
    }

    /// @notice Has a claim's proof verified; only for marketplaces, since a verifier may keep state.
    /// @param tokensBefore tokens that the job's earlier claims cover
    /// @return whether the proof is one of the claim
    function verifyClaim(
        uint256 jobId,
        address host,
        uint256 tokensBefore,
        uint256 tokensClaimed,
        bytes calldata proof
    ) external returns (bool) {
        if (!marketplaces[msg.sender]) revert NotMarketplace(msg.sender);
        if (proof.length < 4) revert ProofTooShort(proof.length);
        bytes4 selector = bytes4(proof[:4]);
        IProofVerifier verifier = verifierOf[selector];
        if (address(verifier) == address(0)) revert UnknownVerifier(selector);
        return verifier.verifyClaim(Claim(msg.sender, jobId, host, tokensBefore, tokensClaimed), proof[4:]);
    }

    function hasVerifier(bytes4 selector) public view returns (bool) {
        return address(verifierOf[selector]) != address(0);
    }
}
