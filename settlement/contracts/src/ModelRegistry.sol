// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";

/// @title Models that hosts may offer
/// @notice A model is a file of a repository, named by keccak256(repo/file).
contract ModelRegistry is Ownable2Step {
    struct Model {
        string repo;
        string file;
        bytes32 sha256Hash;
        bool active;
        uint256 addedAt;
    }

    mapping(bytes32 modelId => Model) private _models;
    bytes32[] private _modelIds;

    event ModelAdded(bytes32 indexed modelId, string repo, string file, bytes32 sha256Hash);
    event ModelStatusChanged(bytes32 indexed modelId, bool active);

    error EmptyModelName();
    error ModelAlreadyAdded(bytes32 modelId);
    error UnknownModel(bytes32 modelId);

    constructor() Ownable(msg.sender) {}

    /// @notice Approves a model.
    /// @param sha256Hash of the file
    function addTrustedModel(string calldata repo, string calldata file, bytes32 sha256Hash)
        external
        onlyOwner
        returns (bytes32 modelId)
    {
        if (bytes(repo).length == 0 || bytes(file).length == 0) revert EmptyModelName();
        modelId = getModelId(repo, file);
        if (_models[modelId].addedAt != 0) revert ModelAlreadyAdded(modelId);
        _models[modelId] = Model(repo, file, sha256Hash, true, block.timestamp);
        _modelIds.push(modelId);
        emit ModelAdded(modelId, repo, file, sha256Hash);
    }

    /// @notice Withdraws or restores the approval of a model.
    function setModelActive(bytes32 modelId, bool active) external onlyOwner {
        if (_models[modelId].addedAt == 0) revert UnknownModel(modelId);
        _models[modelId].active = active;
        emit ModelStatusChanged(modelId, active);
    }

    function isModelApproved(bytes32 modelId) external view returns (bool) {
        return _models[modelId].active;
    }

    function getModel(bytes32 modelId) external view returns (Model memory) {
        if (_models[modelId].addedAt == 0) revert UnknownModel(modelId);
        return _models[modelId];
    }

    function getAllModels() external view returns (bytes32[] memory) {
        return _modelIds;
    }

    function getModelId(string calldata repo, string calldata file) public pure returns (bytes32) {
        return keccak256(abi.encodePacked(repo, "/", file));
    }
}
