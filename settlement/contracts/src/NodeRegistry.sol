// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EnumerableSet} from "@openzeppelin/contracts/utils/structs/EnumerableSet.sol";
import {ModelRegistry} from "./ModelRegistry.sol";
import {Payments, ZeroAddress} from "./Payments.sol";

/// @title Hosts: where they answer, what they serve, what they ask for, what they have at stake
/// @notice The stake is in ETH and comes back on unregistering. Prices are per generated token, in wei
///         for sessions in ETH and in the token's smallest unit for sessions in a stable token.
contract NodeRegistry is ReentrancyGuardTransient {
    using EnumerableSet for EnumerableSet.AddressSet;

    struct Node {
        uint256 stakedAmount;
        bool active;
        string metadata;
        string apiUrl;
        bytes32[] modelIds;
        uint256 minPriceNative;
        uint256 minPriceStable;
    }

    ModelRegistry public immutable modelRegistry;
    /// @notice Wei that a host must stake to register.
    uint256 public immutable minStake;

    mapping(address operator => Node) private _nodes;
    EnumerableSet.AddressSet private _operators;

    event NodeRegistered(address indexed operator, uint256 stakedAmount, string metadata, bytes32[] modelIds);
    event NodeUnregistered(address indexed operator, uint256 returnedStake);
    event StakeAdded(address indexed operator, uint256 amount, uint256 stakedAmount);
    event NodeStatusChanged(address indexed operator, bool active);
    event MetadataUpdated(address indexed operator, string metadata);
    event ApiUrlUpdated(address indexed operator, string apiUrl);
    event ModelsUpdated(address indexed operator, bytes32[] modelIds);
    event PricingUpdated(address indexed operator, uint256 minPriceNative, uint256 minPriceStable);

    error AlreadyRegistered(address operator);
    error NotRegistered(address operator);
    error StakeTooSmall(uint256 sent, uint256 minimum);
    error EmptyMetadata();
    error EmptyApiUrl();
    error NoModels();
    error ModelNotApproved(bytes32 modelId);
    error ZeroMinimumPrice();

    modifier onlyRegistered() {
        if (!_operators.contains(msg.sender)) revert NotRegistered(msg.sender);
        _;
    }

    constructor(ModelRegistry modelRegistry_, uint256 minStake_) {
        if (address(modelRegistry_) == address(0)) revert ZeroAddress();
        modelRegistry = modelRegistry_;
        minStake = minStake_;
    }

    /// @notice Registers the caller as a host; the value sent is its stake.
    /// @param metadata JSON, with the host's `publicKey` among others
    function registerNode(
        string calldata metadata,
        string calldata apiUrl,
        bytes32[] calldata modelIds,
        uint256 minPriceNative,
        uint256 minPriceStable
    ) external payable {
        if (!_operators.add(msg.sender)) revert AlreadyRegistered(msg.sender);
        if (msg.value < minStake) revert StakeTooSmall(msg.value, minStake);
        Node storage node = _nodes[msg.sender];
        node.stakedAmount = msg.value;
        node.active = true;
        _setMetadata(node, metadata);
        _setApiUrl(node, apiUrl);
        _setModels(node, modelIds);
        _setPricing(node, minPriceNative, minPriceStable);
        emit NodeRegistered(msg.sender, msg.value, metadata, modelIds);
    }

    /// @notice Removes the caller and returns its stake. Its open sessions can still be claimed and settled.
    function unregisterNode() external nonReentrant onlyRegistered {
        uint256 stakedAmount = _nodes[msg.sender].stakedAmount;
        delete _nodes[msg.sender];
        _operators.remove(msg.sender);
        emit NodeUnregistered(msg.sender, stakedAmount);
        if (stakedAmount != 0) Payments.pay(address(0), msg.sender, stakedAmount);
    }

    /// @notice Adds the value sent to the caller's stake.
    function stake() external payable onlyRegistered {
        Node storage node = _nodes[msg.sender];
        node.stakedAmount += msg.value;
        emit StakeAdded(msg.sender, msg.value, node.stakedAmount);
    }

    /// @notice Takes new sessions, or takes none for the time being.
    function setActive(bool active) external onlyRegistered {
        _nodes[msg.sender].active = active;
        emit NodeStatusChanged(msg.sender, active);
    }

    function updateMetadata(string calldata metadata) external onlyRegistered {
        _setMetadata(_nodes[msg.sender], metadata);
        emit MetadataUpdated(msg.sender, metadata);
    }

    function updateApiUrl(string calldata apiUrl) external onlyRegistered {
        _setApiUrl(_nodes[msg.sender], apiUrl);
        emit ApiUrlUpdated(msg.sender, apiUrl);
    }

    function updateSupportedModels(bytes32[] calldata modelIds) external onlyRegistered {
        _setModels(_nodes[msg.sender], modelIds);
        emit ModelsUpdated(msg.sender, modelIds);
    }

    function updatePricingNative(uint256 minPriceNative) external onlyRegistered {
        Node storage node = _nodes[msg.sender];
        _setPricing(node, minPriceNative, node.minPriceStable);
        emit PricingUpdated(msg.sender, minPriceNative, node.minPriceStable);
    }

    function updatePricingStable(uint256 minPriceStable) external onlyRegistered {
        Node storage node = _nodes[msg.sender];
        _setPricing(node, node.minPriceNative, minPriceStable);
        emit PricingUpdated(msg.sender, node.minPriceNative, minPriceStable);
    }

    /// @notice All that is known of a host; zeros and empty strings for one that is not registered.
    function getNodeFullInfo(address operator)
        external
        view
        returns (
            address operator_,
            uint256 stakedAmount,
            bool active,
            string memory metadata,
            string memory apiUrl,
            bytes32[] memory modelIds,
            uint256 minPriceNative,
            uint256 minPriceStable
        )
    {
        Node storage node = _nodes[operator];
        operator_ = _operators.contains(operator) ? operator : address(0);
        (stakedAmount, active, metadata) = (node.stakedAmount, node.active, node.metadata);
        (apiUrl, modelIds) = (node.apiUrl, node.modelIds);
        (minPriceNative, minPriceStable) = (node.minPriceNative, node.minPriceStable);
    }

    function isRegisteredNode(address operator) external view returns (bool) {
        return _operators.contains(operator);
    }

    function isActiveNode(address operator) external view returns (bool) {
        return _nodes[operator].active;
    }

    /// @notice The least price per token that a host takes in `token` (address(0) is ETH).
    function minimumPrice(address operator, address token) external view returns (uint256) {
        return token == address(0) ? _nodes[operator].minPriceNative : _nodes[operator].minPriceStable;
    }

    function nodeSupportsModel(address operator, bytes32 modelId) external view returns (bool) {
        bytes32[] storage modelIds = _nodes[operator].modelIds;
        for (uint256 i = 0; i < modelIds.length; ++i) {
            if (modelIds[i] == modelId) return true;
        }
        return false;
    }

    function nodeCount() external view returns (uint256) {
        return _operators.length();
    }

    /// @notice Up to `limit` registered hosts from `offset` on, in no particular order.
    function nodePage(uint256 offset, uint256 limit) external view returns (address[] memory) {
        uint256 count = _operators.length();
        if (offset >= count) return new address[](0);
        uint256 end = limit < count - offset ? offset + limit : count;
        return _operators.values(offset, end);
    }

    function _setMetadata(Node storage node, string calldata metadata) private {
        if (bytes(metadata).length == 0) revert EmptyMetadata();
        node.metadata = metadata;
    }

    function _setApiUrl(Node storage node, string calldata apiUrl) private {
        if (bytes(apiUrl).length == 0) revert EmptyApiUrl();
        node.apiUrl = apiUrl;
    }

    function _setModels(Node storage node, bytes32[] calldata modelIds) private {
        if (modelIds.length == 0) revert NoModels();
        for (uint256 i = 0; i < modelIds.length; ++i) {
            if (!modelRegistry.isModelApproved(modelIds[i])) revert ModelNotApproved(modelIds[i]);
        }
        node.modelIds = modelIds;
    }

    function _setPricing(Node storage node, uint256 minPriceNative, uint256 minPriceStable) private {
        if (minPriceNative == 0 || minPriceStable == 0) revert ZeroMinimumPrice();
        node.minPriceNative = minPriceNative;
        node.minPriceStable = minPriceStable;
    }
}
