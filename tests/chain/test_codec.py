"""Bindings against the committed ABI, and logs, answers and revert data in and out of bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_utils.abi import (
    event_abi_to_log_topic,
    function_abi_to_4byte_selector,
    function_signature_to_4byte_selector,
)
from eth_utils.crypto import keccak
from web3.exceptions import ContractCustomError, ContractLogicError, ContractPanicError, Web3RPCError

from settlement.chain import bindings
from settlement.chain.bindings import ALL_ERRORS, ALL_EVENTS, SELECTORS, JobMarketplace, errors, events
from settlement.chain.contracts import (
    ARTIFACTS_DIR,
    CodecError,
    abi_hash,
    decode_log,
    decode_values,
    encode_values,
    load_artifact,
)
from settlement.chain.reverts import (
    CustomRevert,
    PanicRevert,
    ReasonRevert,
    UnknownRevert,
    decode_revert,
    revert_of,
)

NAMES = sorted(path.stem for path in ARTIFACTS_DIR.glob("*.json"))
ADDRESS = "0x1273E6358aa52Bb5B160c34Bf2e617B745e4A944"
TOO_FEW = errors.TooFewTokens.SELECTOR + encode(["uint256", "uint256"], [99, 100])


@pytest.mark.parametrize("name", NAMES)
def test_the_bindings_hold_all_of_the_abi(name: str) -> None:
    abi = load_artifact(name).abi
    functions: dict[str, Any] = {entry["name"]: entry for entry in abi if entry["type"] == "function"}
    assert getattr(bindings, name).FUNCTIONS.keys() == functions.keys()
    for entry in functions.values():
        assert SELECTORS[function_abi_to_4byte_selector(entry)].name == entry["name"]
    for entry in abi:
        if entry["type"] == "event":
            assert ALL_EVENTS[event_abi_to_log_topic(entry)].__name__ == entry["name"]  # type: ignore[arg-type]
        elif entry["type"] == "error":
            signature = f"{entry['name']}({','.join(item['type'] for item in entry['inputs'])})"
            assert ALL_ERRORS[function_signature_to_4byte_selector(signature)].__name__ == entry["name"]


def test_a_claim_has_the_selector_of_its_own_signature() -> None:
    call = JobMarketplace(ADDRESS).submit_proof_of_work(job_id=163, tokens_claimed=100, proof=b"\1\2")
    assert call.data[:4].hex() == "c8c664ee"
    assert call.function.signature == "submitProofOfWork(uint256,uint256,bytes)"
    assert decode_values(call.function.inputs, call.data[4:]) == (163, 100, b"\1\2")
    assert (call.to, call.value) == (ADDRESS, 0)


def test_the_interface_of_the_mission_documents_is_kept() -> None:
    selectors = {
        "createSessionJob": "366e2177",
        "createSessionJobWithToken": "62c61f84",
        "completeSessionJob": "040138dd",
        "triggerSessionTimeout": "14a4ffa5",
    }
    functions = JobMarketplace.FUNCTIONS
    assert {name: functions[name].selector.hex() for name in selectors} == selectors


def test_a_session_reads_the_same_from_the_older_marketplace() -> None:
    call = JobMarketplace(ADDRESS).session_jobs(1)
    assert call.function.outputs[:15] == (
        *("uint256", "address", "address", "address"),
        *("uint256",) * 7,
        *("uint8", "uint256", "uint256", "string"),
    )


def test_an_answer_of_no_contract_is_a_codec_error() -> None:
    with pytest.raises(CodecError, match="0 bytes"):
        JobMarketplace(ADDRESS).next_job_id().decode(b"")


def test_every_refusal_of_our_contracts_has_a_test() -> None:
    folder = Path(__file__).parent
    files = [
        *folder.glob("test_*refusals.py"),
        folder / "test_time_rules.py",
        folder / "test_settlement_flow.py",
    ]
    text = "".join(path.read_text() for path in files)
    own = {kind.__name__ for kind in ALL_ERRORS.values() if kind.__module__ == errors.__name__}
    assert {name for name in own if name not in text} == set()


def test_a_value_out_of_range_is_a_codec_error() -> None:
    for job_id in (-1, 2**256):
        with pytest.raises(CodecError):
            JobMarketplace(ADDRESS).session_jobs(job_id)
    with pytest.raises(CodecError):
        encode_values(("bytes4",), (b"12345",))


def proof_of_work_log(**changes: Any) -> dict[str, Any]:
    return {
        "address": ADDRESS.lower(),
        "topics": [
            events.ProofOfWork.topic,
            (163).to_bytes(32, "big"),
            bytes.fromhex(ADDRESS[2:]).rjust(32, b"\0"),
        ],
        "data": encode(["uint256", "bytes32"], [100, b"\7" * 32]),
        "blockNumber": 5,
        "blockHash": b"\1" * 32,
        "transactionHash": b"\2" * 32,
        "logIndex": 3,
        **changes,
    }


def test_a_log_becomes_a_typed_event() -> None:
    log = events.ProofOfWork.decode(proof_of_work_log())
    assert log.event == events.ProofOfWork(163, ADDRESS, 100, b"\7" * 32)
    assert (log.address, log.block_number, log.log_index) == (ADDRESS, 5, 3)
    assert (log.block_hash, log.transaction_hash) == (b"\1" * 32, b"\2" * 32)
    assert decode_log(proof_of_work_log(), events=ALL_EVENTS) == log


def test_a_log_in_plain_json_decodes_alike() -> None:
    log = proof_of_work_log()
    plain = {key: f"0x{value.hex()}" if isinstance(value, bytes) else value for key, value in log.items()}
    plain |= {
        "topics": [f"0x{topic.hex()}" for topic in log["topics"]],
        "blockNumber": "0x5",
        "logIndex": "0x3",
    }
    assert events.ProofOfWork.decode(plain) == events.ProofOfWork.decode(log)


def test_a_foreign_log_is_no_event() -> None:
    assert decode_log(proof_of_work_log(topics=[b"\0" * 32]), events=ALL_EVENTS) is None
    assert decode_log(proof_of_work_log(topics=[]), events=ALL_EVENTS) is None
    for changes in ({"topics": [events.ProofOfWork.topic]}, {"data": b"\0" * 63}):
        with pytest.raises(CodecError):
            events.ProofOfWork.decode(proof_of_work_log(**changes))


def test_revert_data_of_every_kind_decodes() -> None:
    revert = decode_revert(TOO_FEW)
    assert revert == CustomRevert(errors.TooFewTokens(claimed=99, minimum=100))
    assert (revert.name, str(revert)) == ("TooFewTokens", "TooFewTokens(claimed=99, minimum=100)")
    reason = keccak(text="Error(string)")[:4] + encode(["string"], ["Session not active"])
    assert decode_revert(reason) == ReasonRevert("Session not active")
    panic = decode_revert(keccak(text="Panic(uint256)")[:4] + encode(["uint256"], [0x11]))
    assert (panic, str(panic)) == (PanicRevert(0x11), "Panic(0x11): arithmetic overflow")
    assert str(decode_revert(b"")) == "reverted without data"


@pytest.mark.parametrize(
    "data",
    [b"\xde\xad\xbe\xef\x01", b"\x01", TOO_FEW[:-1], keccak(text="Error(string)")[:4] + b"\xff" * 40],
)
def test_revert_data_that_nothing_explains_is_kept(data: bytes) -> None:
    assert decode_revert(data) == UnknownRevert(data)


def test_the_revert_is_found_in_what_web3_raises() -> None:
    hexed = f"0x{TOO_FEW.hex()}"
    expected = CustomRevert(errors.TooFewTokens(99, 100))
    assert revert_of(ContractCustomError(hexed, data=hexed)) == expected
    assert revert_of(ContractLogicError("execution reverted", data={"data": hexed})) == expected
    for payload in (hexed, {"data": hexed}):
        answer: Any = {"error": {"code": 3, "message": "execution reverted", "data": payload}}
        assert revert_of(Web3RPCError("", rpc_response=answer)) == expected
    panic = f"0x{(keccak(text='Panic(uint256)')[:4] + encode(['uint256'], [1])).hex()}"
    assert revert_of(ContractPanicError("assert", data=panic)) == PanicRevert(1)
    assert revert_of(ContractLogicError("execution reverted: Only host")) == ReasonRevert("Only host")
    assert revert_of(ContractLogicError("execution reverted")) == UnknownRevert(b"")


def test_what_is_no_revert_is_none() -> None:
    answer: Any = {"error": {"code": -32000, "message": "nonce too low"}}
    assert revert_of(Web3RPCError("nonce too low", rpc_response=answer)) is None
    assert revert_of(Web3RPCError("no answer")) is None
    assert revert_of(ValueError("other")) is None


def test_the_abi_hash_names_the_interface() -> None:
    assert len(abi_hash()) == 64
    assert abi_hash() == abi_hash()


def test_artifacts_keep_no_trace_of_the_machine(tmp_path: Path) -> None:
    for path in ARTIFACTS_DIR.glob("*.json"):
        stored = json.loads(path.read_text())
        assert stored["contractName"] == path.stem
        assert 0 < stored["deployedBytecodeSize"] <= 24_576
        assert "/" not in stored["bytecode"]
