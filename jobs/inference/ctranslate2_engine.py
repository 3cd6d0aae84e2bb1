"""CTranslate2 as a token generator.

Guarantees: a model is loaded only after every file's SHA-256 and every token of the vocabulary were
checked (CTranslate2 itself loads overwritten weights and maps unknown tokens silently); end tokens
are neither counted nor shown; a stop takes effect within one token. The CUDA branch follows
CTranslate2's documentation but was not run on a GPU. Does not queue (``scheduler`` does).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ctranslate2
from tokenizers import Tokenizer

from jobs.inference.detokenizer import Detokenizer, DetokenizerFactory
from jobs.inference.engine import ChatMessage, GenerationFailed, LoadedModel
from jobs.inference.generator import GenerationTask, ModelLoadError
from jobs.inference.prompt import ChatTemplateError, PromptTemplate
from nodes.model_manifest import (
    CHAT_TEMPLATE_FILE,
    TOKENIZER_FILE,
    ModelError,
    ModelManifest,
    read_vocabulary,
    require_intact,
)
from nodes.model_vocabulary import check_vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where and how a model computes.

    ``replicas`` generations run at the same time, each with ``threads`` CPU threads; on CUDA there
    is one replica per entry of ``device_indexes``.
    """

    device: Literal["cpu", "cuda"]
    device_indexes: tuple[int, ...]
    compute_type: str
    replicas: int
    threads: int


def choose_placement(*, device: str = "auto", compute_type: str | None = None) -> Placement:
    """CUDA with every GPU if there is one, else one single-threaded CPU replica per core.

    Raises ``ModelLoadError`` if CUDA is demanded and absent.
    """
    gpus = ctranslate2.get_cuda_device_count()
    if device == "cuda" and gpus == 0:
        raise ModelLoadError("There is no usable CUDA device. Set the device to auto or cpu.")
    if device not in {"auto", "cpu", "cuda"}:
        raise ModelLoadError(f"The device {device!r} is unknown. Set it to auto, cpu or cuda.")
    if gpus > 0 and device != "cpu":
        return Placement(
            device="cuda",
            device_indexes=tuple(range(gpus)),
            compute_type=compute_type or "int8_float16",
            replicas=gpus,
            threads=1,
        )
    cores = len(os.sched_getaffinity(0))
    return Placement(device="cpu", device_indexes=(0,), compute_type=compute_type or "int8", replicas=cores, threads=1)


def create_generator(directory: Path, *, placement: Placement) -> ctranslate2.Generator:
    """A bare CTranslate2 generator with the options that the engine uses; checks nothing."""
    on_cpu = placement.device == "cpu"
    return ctranslate2.Generator(
        str(directory),
        device=placement.device,
        device_index=list(placement.device_indexes),
        compute_type=placement.compute_type,
        inter_threads=placement.replicas if on_cpu else 1,
        intra_threads=placement.threads,
    )


def load_generator(directory: Path, *, model_id: str, placement: Placement) -> CTranslate2Generator:
    """Verify and load the model in ``directory``. Raises ``ModelLoadError``."""
    try:
        manifest = require_intact(directory)
        vocabulary = read_vocabulary(directory)
        tokenizer = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
        check_vocabulary(vocabulary, tokenizer=tokenizer)
        prompts = _prompt_template(directory, manifest=manifest, tokenizer=tokenizer, vocabulary=vocabulary)
        generator = create_generator(directory, placement=placement)
    except (ModelError, ChatTemplateError) as error:
        raise ModelLoadError(f"Cannot serve {model_id}: {error}") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelLoadError(
            f"Cannot load {model_id} from {directory} on {placement.device} as {placement.compute_type}: {error}"
        ) from error
    loaded = LoadedModel(
        model=model_id,
        context_length=manifest.context_length,
        vocabulary_size=manifest.vocabulary_size,
        device=placement.device,
        compute_type=generator.compute_type,
        replicas=placement.replicas,
    )
    return CTranslate2Generator(
        generator,
        loaded=loaded,
        prompts=prompts,
        detokenizers=DetokenizerFactory(tokenizer),
        vocabulary=vocabulary,
        end_token_ids=manifest.end_token_ids,
    )


class CTranslate2Generator:
    """A loaded CTranslate2 model. Made by ``load_generator``; implements ``TokenGenerator``."""

    def __init__(
        self,
        generator: ctranslate2.Generator,
        *,
        loaded: LoadedModel,
        prompts: PromptTemplate,
        detokenizers: DetokenizerFactory,
        vocabulary: Sequence[str],
        end_token_ids: Sequence[int],
    ) -> None:
        self._generator: ctranslate2.Generator | None = generator
        self._loaded = loaded
        self._prompts = prompts
        self._detokenizers = detokenizers
        self._vocabulary = vocabulary
        self._end_token_ids = list(end_token_ids)

    @property
    def loaded(self) -> LoadedModel:
        """See ``TokenGenerator.loaded``."""
        return self._loaded

    def encode(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """See ``TokenGenerator.encode``."""
        return self._prompts.encode(messages)

    def detokenizer(self) -> Detokenizer:
        """See ``TokenGenerator.detokenizer``."""
        return self._detokenizers.create()

    def run(self, task: GenerationTask) -> Literal["stop", "length"]:
        """See ``TokenGenerator.run``."""
        if self._generator is None:
            raise GenerationFailed("The model was freed.")
        step = _Step(task, end_token_ids=frozenset(self._end_token_ids))
        try:
            self._generator.generate_batch(
                [[self._vocabulary[token] for token in task.prompt]],
                max_length=task.limit,
                include_prompt_in_result=False,
                end_token=self._end_token_ids,
                callback=step,
                **sampling_options(task),
            )
        except (RuntimeError, ValueError) as error:
            raise GenerationFailed(f"CTranslate2 failed: {error}") from error
        return "stop" if step.ended else "length"

    def close(self) -> None:
        """See ``TokenGenerator.close``. Must happen before the interpreter exits."""
        self._generator = None


class _Step:
    """CTranslate2's callback: passes tokens on, and answers True to stop."""

    def __init__(self, task: GenerationTask, *, end_token_ids: frozenset[int]) -> None:
        self._task = task
        self._end_token_ids = end_token_ids
        self.ended = False

    def __call__(self, result: Any) -> bool:
        if self._task.stopped.is_set():
            return True
        if result.token_id in self._end_token_ids:
            self.ended = True
            return True
        self._task.on_token(result.token_id)
        return False


def sampling_options(task: GenerationTask) -> dict[str, Any]:
    """CTranslate2's sampling arguments. Its own default is greedy whatever the temperature."""
    request = task.request
    if request.temperature == 0:
        return {"sampling_topk": 1, "repetition_penalty": request.repetition_penalty}
    return {
        "sampling_topk": request.top_k,
        "sampling_topp": request.top_p,
        "sampling_temperature": request.temperature,
        "repetition_penalty": request.repetition_penalty,
    }


def _prompt_template(
    directory: Path, *, manifest: ModelManifest, tokenizer: Tokenizer, vocabulary: Sequence[str]
) -> PromptTemplate:
    bos = manifest.bos_token_id
    return PromptTemplate(
        (directory / CHAT_TEMPLATE_FILE).read_text(encoding="utf-8"),
        tokenizer=tokenizer,
        bos_token="" if bos is None else vocabulary[bos],
        eos_token=vocabulary[manifest.eos_token_id],
    )
