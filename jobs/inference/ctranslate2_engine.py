"""CTranslate2 as a token generator.

Guarantees: a model is loaded only after every file's SHA-256 and every token of the vocabulary were
checked (CTranslate2 itself loads overwritten weights and maps unknown tokens silently); end tokens
are neither counted nor shown; a row that ends leaves its batch within one token. Does not queue or
group (``scheduler`` does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from tokenizers import Tokenizer

from jobs.inference.detokenizer import Detokenizer, DetokenizerFactory
from jobs.inference.engine import (
    ChatMessage,
    GenerationFailed,
    GenerationRequest,
    LoadedModel,
    ModelState,
    TokenProbability,
)
from jobs.inference.generator import Batch, ModelLoadError, OutOfMemory, Row
from jobs.inference.placement import Placement, advice, create_generator, giving_way
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


def load_generator(
    directory: Path,
    *,
    model_id: str,
    placement: Placement,
    progress: Callable[[float], None] = lambda part: None,
) -> CTranslate2Generator:
    """Verify and load the model in ``directory``. Raises ``ModelLoadError``.

    ``progress`` is told the part (0 to 1) that is done.
    """
    try:
        manifest = require_intact(directory)
        progress(0.4)
        vocabulary = read_vocabulary(directory)
        tokenizer = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
        check_vocabulary(vocabulary, tokenizer=tokenizer)
        prompts = _prompt_template(directory, manifest=manifest, tokenizer=tokenizer, vocabulary=vocabulary)
        progress(0.6)
        generator = giving_way(lambda: create_generator(directory, placement=placement), placement=placement)
    except (ModelError, ChatTemplateError) as error:
        raise ModelLoadError(f"Cannot serve {model_id}: {error}") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelLoadError(
            f"Cannot load {model_id} from {directory} on {placement.device} as {placement.compute_type}:"
            f" {error}. {advice(str(error), placement=placement)}"
        ) from error
    progress(1.0)
    return CTranslate2Generator(
        generator,
        loaded=describe(
            manifest, model_id=model_id, placement=placement, compute_type=generator.compute_type, state="loaded"
        ),
        prompts=prompts,
        detokenizers=DetokenizerFactory(tokenizer),
        vocabulary=vocabulary,
        end_token_ids=manifest.end_token_ids,
    )


def describe(
    manifest: ModelManifest,
    *,
    model_id: str,
    placement: Placement,
    compute_type: str,
    state: ModelState,
) -> LoadedModel:
    """What the manifest tells about a model, loaded or not."""
    return LoadedModel(
        model=model_id,
        context_length=manifest.context_length,
        vocabulary_size=manifest.vocabulary_size,
        device=placement.device,
        compute_type=compute_type,
        replicas=placement.replicas,
        state=state,
        memory_bytes=manifest.size,
        batch_rows=placement.batch_rows,
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

    def encode_text(self, text: str) -> tuple[int, ...]:
        """See ``TokenGenerator.encode_text``."""
        return self._prompts.encode_text(text)

    def detokenizer(self) -> Detokenizer:
        """See ``TokenGenerator.detokenizer``."""
        return self._detokenizers.create()

    def decode(self, token_ids: Sequence[int]) -> str:
        """See ``TokenGenerator.decode``."""
        detokenizer = self._detokenizers.create()
        return detokenizer.push(token_ids) + detokenizer.flush()

    def run(self, batch: Batch) -> None:
        """See ``TokenGenerator.run``."""
        if self._generator is None:
            raise GenerationFailed("The model was freed.")
        # The longest prompt first: then the last row of a batch produces in every step (see _Steps).
        rows = sorted(batch.rows, key=lambda row: len(row.context), reverse=True)
        request = rows[0].request
        try:
            self._generator.generate_batch(
                [[self._vocabulary[token] for token in row.context] for row in rows],
                max_length=max(row.remaining for row in rows),
                include_prompt_in_result=False,
                end_token=self._end_token_ids,
                callback=_Steps(batch, rows=rows, end_token_ids=frozenset(self._end_token_ids), decode=self.decode),
                return_scores=request.top_logprobs is not None,
                return_logits_vocab=bool(request.top_logprobs),
                **sampling_options(request),
            )
        except (RuntimeError, ValueError) as error:
            if "out of memory" in str(error).lower():
                raise OutOfMemory(str(error)) from error
            raise GenerationFailed(f"CTranslate2 failed: {error}") from error

    def close(self) -> None:
        """See ``TokenGenerator.close``. Must happen before the interpreter exits."""
        self._generator = None


class _Steps:
    """CTranslate2's callback: passes each row's token on, and answers True to take the row out.

    Within a step CTranslate2 calls it in the order of the rows, for those past their prompt. As the
    shortest prompt is last, the last row of those that are left is called in every step, so that
    ``on_step`` after it announces the step as soon as it is complete.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        rows: Sequence[Row],
        end_token_ids: frozenset[int],
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self._rows = rows
        self._live = list(range(len(rows)))
        self._on_step = batch.on_step
        self._interrupted = batch.interrupted
        self._end_token_ids = end_token_ids
        self._decode = decode

    def __call__(self, result: Any) -> bool:
        index, token = result.batch_id, result.token_id
        row = self._rows[index]
        completes_step = index == self._live[-1]
        if self._interrupted.is_set():
            ended = True
        elif token in self._end_token_ids:
            row.finish("stop")
            ended = True
        else:
            ended = row.deliver(token, self._probability(result, row.request.top_logprobs))
        if ended:
            self._live.remove(index)
        if completes_step:
            self._on_step()
        return ended

    def _probability(self, result: Any, count: int | None) -> TokenProbability | None:
        if count is None:
            return None
        top: tuple[tuple[str, float], ...] = ()
        if count:
            # Rows that want alternatives are alone in their batch, so this is the one row's.
            logits = np.array(result.logits.to(ctranslate2.DataType.float32), dtype=np.float32).reshape(-1)
            logprobs = logits - logits.max()
            logprobs -= np.log(np.exp(logprobs).sum())
            best = np.argpartition(logprobs, -count)[-count:]
            best = best[np.argsort(-logprobs[best], kind="stable")]
            top = tuple((self._decode((int(token),)), float(logprobs[token])) for token in best)
        return TokenProbability(
            token_id=result.token_id, token=self._decode((result.token_id,)), logprob=result.log_prob, top=top
        )


def sampling_options(request: GenerationRequest) -> dict[str, Any]:
    """CTranslate2's sampling arguments. Its own default is greedy whatever the temperature."""
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
