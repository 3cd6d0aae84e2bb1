"""The catalog changes under a running node: the new model answers at once, the removed one is unknown at once."""

from __future__ import annotations

import json
from typing import Any

from jobs.inference.client import EngineClient
from nodes import catalog
from nodes.database import in_database_thread
from nodes.models import ServedModel
from tests.flows.flow import Flow, prompt_body
from tests.plugins.model import EngineProcess

FIRST: dict[str, Any] = {"id": "scripted", "scripted": {"tokens": None}, "default": True}
SECOND: dict[str, Any] = {"id": "second", "scripted": {"tokens": None, "seconds_per_token": 0.01}}


def write_models(engine: EngineProcess, *models: dict[str, Any]) -> None:
    path = engine.directory / "engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"models": list(models)}))


def test_a_model_comes_and_goes_while_the_node_runs(flow: Flow, engine_process: EngineProcess) -> None:
    job_id = flow.world.open_usdc()
    client = engine_process.start(FIRST)
    flow.use(client)
    refused = flow.post(prompt_body(5, model="second", job_id=job_id))
    assert (refused.status, refused.json["error_type"]) == (404, "model_not_found")

    ServedModel.objects.create(
        id="second",
        aliases=["short"],
        path="/nowhere",
        source="test",
        architecture="scripted",
        quantization="none",
        context_length=2048,
        vocabulary_size=256,
        manifest_sha256="0" * 64,
    )
    write_models(engine_process, FIRST, SECOND)
    answer = flow.post(prompt_body(25, model="short", job_id=job_id))
    assert (answer.status, answer.json["model"], answer.json["tokens_used"]) == (200, "second", 25)

    async def remove_under_way() -> tuple[list[dict[str, Any]], Any]:
        async with flow.socket() as socket:
            wanted = prompt_body(60, model="second", job_id=job_id)
            await socket.send({"type": "inference", "id": "m", "request": wanted})
            await socket.chunks(5)
            await _unregister("second")
            write_models(engine_process, FIRST)
            await EngineClient(engine_process.socket).refresh()
            late = await (await flow.exchange(prompt_body(5, model="second", job_id=job_id)).send()).answer()
            return await socket.until("stream_end"), late

    frames, late = flow.run(remove_under_way())
    assert (late.status, late.json["error_type"]) == (404, "model_not_found")
    assert "second" not in late.json["details"]["available_models"]
    assert (frames[-1]["type"], frames[-1]["tokens_used"]) == ("stream_end", 60)
    assert flow.tracked(job_id) == 85
    assert flow.post(prompt_body(15, job_id=job_id)).json["tokens_used"] == 15


async def _unregister(model: str) -> None:
    await in_database_thread(catalog.unregister_model)(model)
