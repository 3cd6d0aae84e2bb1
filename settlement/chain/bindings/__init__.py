"""Typed contracts, events and errors, and the tables to find them by.

Generated from settlement/contracts/src by `python -m settlement.contracts.compile`; do not edit.
"""

from __future__ import annotations

from collections.abc import Mapping

from settlement.chain.bindings import errors, events, library_errors
from settlement.chain.bindings.host_earnings import HostEarnings
from settlement.chain.bindings.job_marketplace import JobMarketplace
from settlement.chain.bindings.mission_job_marketplace import MissionJobMarketplace
from settlement.chain.bindings.mock_verifier import MockVerifier
from settlement.chain.bindings.model_job_marketplace import ModelJobMarketplace
from settlement.chain.bindings.model_rate_limits import ModelRateLimits
from settlement.chain.bindings.model_registry import ModelRegistry
from settlement.chain.bindings.node_registry import NodeRegistry
from settlement.chain.bindings.proof_system import ProofSystem
from settlement.chain.bindings.test_usdc import TestUSDC
from settlement.chain.contracts import ContractEvent, ContractRefusal, FunctionSpec

ALL_EVENTS: Mapping[bytes, type[ContractEvent]] = {
    events.ApiUrlUpdated.topic: events.ApiUrlUpdated,
    events.Approval.topic: events.Approval,
    events.CallerAuthorized.topic: events.CallerAuthorized,
    events.DepositLimitsChanged.topic: events.DepositLimitsChanged,
    events.EarningsCredited.topic: events.EarningsCredited,
    events.EarningsWithdrawn.topic: events.EarningsWithdrawn,
    events.IdleTimeoutChanged.topic: events.IdleTimeoutChanged,
    events.MarketplaceChanged.topic: events.MarketplaceChanged,
    events.MetadataUpdated.topic: events.MetadataUpdated,
    events.ModelAdded.topic: events.ModelAdded,
    events.ModelStatusChanged.topic: events.ModelStatusChanged,
    events.ModelsUpdated.topic: events.ModelsUpdated,
    events.NodeRegistered.topic: events.NodeRegistered,
    events.NodeStatusChanged.topic: events.NodeStatusChanged,
    events.NodeUnregistered.topic: events.NodeUnregistered,
    events.OwnershipTransferStarted.topic: events.OwnershipTransferStarted,
    events.OwnershipTransferred.topic: events.OwnershipTransferred,
    events.PricingUpdated.topic: events.PricingUpdated,
    events.ProofOfWork.topic: events.ProofOfWork,
    events.ProofSystemChanged.topic: events.ProofSystemChanged,
    events.RefundCredited.topic: events.RefundCredited,
    events.RefundWithdrawn.topic: events.RefundWithdrawn,
    events.SessionCompleted.topic: events.SessionCompleted,
    events.SessionJobCreated.topic: events.SessionJobCreated,
    events.SessionTimedOut.topic: events.SessionTimedOut,
    events.StakeAdded.topic: events.StakeAdded,
    events.Transfer.topic: events.Transfer,
    events.TreasuryChanged.topic: events.TreasuryChanged,
    events.TreasuryCredited.topic: events.TreasuryCredited,
    events.TreasuryWithdrawn.topic: events.TreasuryWithdrawn,
    events.VerifierListed.topic: events.VerifierListed,
    events.VerifierUnlisted.topic: events.VerifierUnlisted,
}
ALL_ERRORS: Mapping[bytes, type[ContractRefusal]] = {
    errors.AlreadyRegistered.SELECTOR: errors.AlreadyRegistered,
    errors.ClaimTooFast.SELECTOR: errors.ClaimTooFast,
    errors.DepositBelowProofInterval.SELECTOR: errors.DepositBelowProofInterval,
    errors.DepositNotReceived.SELECTOR: errors.DepositNotReceived,
    errors.DepositTooLarge.SELECTOR: errors.DepositTooLarge,
    errors.DepositTooSmall.SELECTOR: errors.DepositTooSmall,
    errors.DisputeWindowOpen.SELECTOR: errors.DisputeWindowOpen,
    errors.DurationOutOfRange.SELECTOR: errors.DurationOutOfRange,
    library_errors.ERC20InsufficientAllowance.SELECTOR: library_errors.ERC20InsufficientAllowance,
    library_errors.ERC20InsufficientBalance.SELECTOR: library_errors.ERC20InsufficientBalance,
    library_errors.ERC20InvalidApprover.SELECTOR: library_errors.ERC20InvalidApprover,
    library_errors.ERC20InvalidReceiver.SELECTOR: library_errors.ERC20InvalidReceiver,
    library_errors.ERC20InvalidSender.SELECTOR: library_errors.ERC20InvalidSender,
    library_errors.ERC20InvalidSpender.SELECTOR: library_errors.ERC20InvalidSpender,
    errors.EmptyApiUrl.SELECTOR: errors.EmptyApiUrl,
    errors.EmptyMetadata.SELECTOR: errors.EmptyMetadata,
    errors.EmptyModelName.SELECTOR: errors.EmptyModelName,
    errors.ExceedsDeposit.SELECTOR: errors.ExceedsDeposit,
    errors.FeeTooHigh.SELECTOR: errors.FeeTooHigh,
    errors.HostNotActive.SELECTOR: errors.HostNotActive,
    errors.HostNotRegistered.SELECTOR: errors.HostNotRegistered,
    errors.IdleTimeoutOutOfRange.SELECTOR: errors.IdleTimeoutOutOfRange,
    errors.InsufficientEarnings.SELECTOR: errors.InsufficientEarnings,
    errors.InvalidDepositLimits.SELECTOR: errors.InvalidDepositLimits,
    errors.ModelAlreadyAdded.SELECTOR: errors.ModelAlreadyAdded,
    errors.ModelNotApproved.SELECTOR: errors.ModelNotApproved,
    errors.NoModels.SELECTOR: errors.NoModels,
    errors.NotAssignedHost.SELECTOR: errors.NotAssignedHost,
    errors.NotAuthorizedCaller.SELECTOR: errors.NotAuthorizedCaller,
    errors.NotMarketplace.SELECTOR: errors.NotMarketplace,
    errors.NotParticipant.SELECTOR: errors.NotParticipant,
    errors.NotRegistered.SELECTOR: errors.NotRegistered,
    errors.NotTreasury.SELECTOR: errors.NotTreasury,
    errors.NothingForTreasury.SELECTOR: errors.NothingForTreasury,
    errors.NothingToRefund.SELECTOR: errors.NothingToRefund,
    errors.NothingToWithdraw.SELECTOR: errors.NothingToWithdraw,
    library_errors.OwnableInvalidOwner.SELECTOR: library_errors.OwnableInvalidOwner,
    library_errors.OwnableUnauthorizedAccount.SELECTOR: library_errors.OwnableUnauthorizedAccount,
    errors.PaymentFailed.SELECTOR: errors.PaymentFailed,
    errors.PriceBelowMinimum.SELECTOR: errors.PriceBelowMinimum,
    errors.ProofAlreadyUsed.SELECTOR: errors.ProofAlreadyUsed,
    errors.ProofIntervalTooSmall.SELECTOR: errors.ProofIntervalTooSmall,
    errors.ProofRejected.SELECTOR: errors.ProofRejected,
    errors.ProofTooShort.SELECTOR: errors.ProofTooShort,
    errors.RateOutOfRange.SELECTOR: errors.RateOutOfRange,
    library_errors.ReentrancyGuardReentrantCall.SELECTOR: library_errors.ReentrancyGuardReentrantCall,
    library_errors.SafeERC20FailedOperation.SELECTOR: library_errors.SafeERC20FailedOperation,
    errors.SessionNotActive.SELECTOR: errors.SessionNotActive,
    errors.SessionNotTimedOut.SELECTOR: errors.SessionNotTimedOut,
    errors.StakeTooSmall.SELECTOR: errors.StakeTooSmall,
    errors.TokenNotAccepted.SELECTOR: errors.TokenNotAccepted,
    errors.TooFewTokens.SELECTOR: errors.TooFewTokens,
    errors.UnbackedCredit.SELECTOR: errors.UnbackedCredit,
    errors.UnknownJob.SELECTOR: errors.UnknownJob,
    errors.UnknownModel.SELECTOR: errors.UnknownModel,
    errors.UnknownVerifier.SELECTOR: errors.UnknownVerifier,
    errors.VerifierAlreadyListed.SELECTOR: errors.VerifierAlreadyListed,
    errors.WrongValue.SELECTOR: errors.WrongValue,
    errors.ZeroAddress.SELECTOR: errors.ZeroAddress,
    errors.ZeroAmount.SELECTOR: errors.ZeroAmount,
    errors.ZeroMinimumPrice.SELECTOR: errors.ZeroMinimumPrice,
    errors.ZeroPrice.SELECTOR: errors.ZeroPrice,
}
SELECTORS: Mapping[bytes, FunctionSpec] = {
    function.selector: function
    for contract in (
        MissionJobMarketplace,
        ModelJobMarketplace,
        ModelRateLimits,
        HostEarnings,
        JobMarketplace,
        MockVerifier,
        ModelRegistry,
        NodeRegistry,
        ProofSystem,
        TestUSDC,
    )
    for function in contract.FUNCTIONS.values()
}

__all__ = [
    "ALL_ERRORS",
    "ALL_EVENTS",
    "SELECTORS",
    "HostEarnings",
    "JobMarketplace",
    "MissionJobMarketplace",
    "MockVerifier",
    "ModelJobMarketplace",
    "ModelRateLimits",
    "ModelRegistry",
    "NodeRegistry",
    "ProofSystem",
    "TestUSDC",
    "errors",
    "events",
    "library_errors",
]
