// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// @title How fast a model may be claimed, as the model registry of that generation tells it
interface ModelRateLimits {
    /// @return tokens for each second since the last claim, at most; a default for a model without its own
    function getModelRateLimit(bytes32 modelId) external view returns (uint256);
}
