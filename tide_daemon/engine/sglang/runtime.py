"""The plug-in's state in one scheduler process: what the hooks call and the control channel answers.

Threads: the step loop's thread runs the hooks. The control thread runs `Commands` (commands.py) and touches only
plain attributes that it replaces whole, the swapper's staging side, and, for an idle engine, the swap
itself under `step_lock`, which each batch takes too.
"""

import logging
import threading
import traceback
from pathlib import Path
from typing import Any, Final

from tide_daemon.engine.control import ControlServer
from tide_daemon.engine.port import CaptureSettings
from tide_daemon.engine.ring import RingWriter, remove_stale_rings
from tide_daemon.engine.ring_layout import RingLayout
from tide_daemon.engine.sglang import agree, catch_up, checks, cold, gpu, ranks
from tide_daemon.engine.sglang.commands import Commands
from tide_daemon.engine.sglang.prefixes import PromptPrefixes
from tide_daemon.engine.sglang.settings import FEATURES, PluginSettings, control_socket, read_settings, ring_prefix
from tide_daemon.engine.sglang.staged import Staged
from tide_daemon.engine.sglang.steps import Steps
from tide_daemon.engine.sglang.swap import Swapper
from tide_daemon.engine.sglang.tap import Tap
from tide_daemon.engine.sglang.timing import Step, StepRecorder, StepTimes
from tide_daemon.errors import EngineError, TideError
from tide_daemon.wire.records import NO_DRAFT

logger = logging.getLogger(__name__)

MAX_PROBLEMS: Final = 20
STAGED: Final = "tide_staged"
TIMES: Final = "tide_times"


class Runtime:
    """One per scheduler process. Built by `start`, which raises only when tensor-parallel ranks cannot talk.

    Attributes:
        step_lock: held by each batch's forward pass and by a swap on an idle engine.
        problems: what went wrong, as sentences; the daemon reports them.
        num_errors: exceptions caught in hooks.
        num_ranks: tensor-parallel ones that must take the same steps.
    """

    def __init__(self, scheduler: Any, directory: Path) -> None:
        self.scheduler = scheduler
        self.directory = directory
        self.step_lock = threading.Lock()
        self.problems: list[str] = []
        self.num_errors = 0
        self.settings = PluginSettings()
        self.facts: checks.Facts | None = None
        self.tap: Tap | None = None
        self.swapper: Swapper | None = None
        self.steps = Steps((0,))
        self.times = StepTimes()
        self.device = gpu.Device()
        self.recorder = StepRecorder(self.times, self.device.clock)
        self._off: set[str] = set(FEATURES)
        self.num_ranks = 1
        self._prefill_logits = True  # they are still the target's when a prefill is staged
        self._no_draft = False  # 0 steps for good, and nothing of the draft is run
        self._defers = False  # at 0 steps the draft's KV is filled later

    @classmethod
    def start(cls, scheduler: Any, directory: Path, missing_hooks: list[str]) -> "Runtime":
        """Check the engine and start what it allows; everything else stays off with a report."""
        runtime = cls(scheduler, directory)
        try:
            runtime.settings = read_settings(directory)
            runtime.facts = checks.inspect(scheduler, missing_hooks)
            runtime._start_parts(runtime.facts)
        except Exception as error:
            runtime._off = set(FEATURES)
            runtime.report(f"capture, steps and swap are off: {error}", error)
        try:
            ControlServer(control_socket(directory, *checks.own_ranks()), Commands(runtime).handlers())
        except Exception as error:
            runtime._off = set(FEATURES)
            runtime.report(f"no control channel, so everything stays off: {error}", error)
        try:
            runtime.num_ranks = agree.num_ranks(scheduler)
        except Exception as error:
            runtime._off = set(FEATURES)
            runtime.report(f"everything stays off, the tensor-parallel ranks cannot be counted: {error}", error)
        if runtime.num_ranks > 1:
            runtime._agree()
        return runtime

    def _agree(self) -> None:
        """Let tensor-parallel ranks have the same features, see agree.py. A rank whose start failed comes here too."""
        common = agree.on_every_rank(self.scheduler, [self.enabled(feature) for feature in agree.STEERING])
        lost = {feature for feature, on in zip(agree.STEERING, common, strict=True) if not on} - self._off
        if lost:
            self._off |= lost
            self.report(f"{', '.join(sorted(lost))}: off, because another tensor-parallel rank cannot")
        self._follow_version(NO_DRAFT)

    def _start_parts(self, facts: checks.Facts) -> None:
        """Each part on its own: what one cannot do must not keep the others off."""
        self.device = gpu.device_for(facts.device, self.scheduler)
        self.recorder = StepRecorder(self.times, self.device.clock)
        self._prefill_logits = not self.device.shares_logits or facts.draft_vocab_size != facts.vocab_size
        self._off -= {"timing", "draft_kv"}
        if facts.tp_rank == 0:
            try:
                self._start_capture(facts)
            except TideError as error:
                self.report(f"capture is off: {error}", error)
        if facts.candidate_steps:
            # Tensor-parallel ranks must take the same steps; their counters are not known to agree, so they keep none.
            plain_every = self.settings.plain_every if facts.tp_size == 1 else 0
            self.steps = Steps(facts.candidate_steps, plain_every)
            self._off.discard("steps")
        else:
            self.report("SGLang runs without --speculative-adaptive: the number of draft steps cannot be changed")
        draft_worker = self.scheduler.model_worker._draft_worker
        try:
            self.swapper = Swapper(draft_worker, facts.tp_size, self.device, self.step_lock, self._follow_version)
            self._off.discard("swap")
        except EngineError as error:
            self.report(f"swap is off: {error}", error)
        self._follow_version(NO_DRAFT)

    def _start_capture(self, facts: checks.Facts) -> None:
        settings = self.settings
        layout = RingLayout.for_bytes(settings.ring_bytes, facts.aux_width, settings.topk)
        prefix = f"{ring_prefix(self.directory)}{facts.dp_rank}"
        ring_dir = Path(settings.ring_dir)
        remove_stale_rings(ring_dir, "tide-")  # any engine's whose writer is dead, not only this one's
        ring = RingWriter(ring_dir / f"{prefix}.ring", layout)
        capture = CaptureSettings(settings.collect, settings.sample_rate, settings.max_rows)
        prefixes = PromptPrefixes() if settings.prompt_workloads else None
        self.tap = Tap(ring, capture, facts.vocab_size, prefixes)
        self._off.discard("capture")

    # Switches and reports.

    def enabled(self, feature: str) -> bool:
        """Whether a feature is on."""
        return feature not in self._off

    def switch_off(self, feature: str, error: Exception) -> None:
        """Turn a feature off after its code raised. Serving goes on.

        Raises:
            EngineError: the other tensor-parallel ranks would go on with the feature, and wait for this one's
                collectives for ever. SGLang ends at an exception in its step loop (managers/scheduler.py 6370), and
                who started it starts it again.
        """
        self.num_errors += 1
        self._off.add(feature)
        if feature == "draft_kv" and self._defers:
            self._defers = False
            checks.set_skip_zero_step_extend(False)  # SGLang fills the draft's KV at each step again
        self.report(f"{feature} switched off after {type(error).__name__}: {error}", error)
        if self.num_ranks > 1 and feature in agree.STEERING:
            raise EngineError(
                f"this tensor-parallel rank cannot take the steps of the others without {feature}: the engine ends"
            ) from error

    def report(self, problem: str, error: Exception | None = None) -> None:
        """Keep one clear sentence for the daemon, and log it with where it came from."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)
        trace = "" if error is None else "\n" + "".join(traceback.format_exception(error))
        logger.error("tide: %s%s", problem, trace)

    # Hooks, in the order of a batch's life. All run in the step loop's thread.

    def on_request(self, req: Any) -> None:
        """A request enters the queue."""
        if self.swapper is not None:
            cold.separate_cache_key(req, self.swapper.current.version)

    def before_batch(self, batch: Any) -> None:
        """Between two batches: the moment to swap."""
        if self.swapper is not None:
            self.swapper.apply_pending()
        if not self._is_decode(batch):
            return
        if not self.steps.allowed:
            if self._no_draft:
                cold.mark_cold(batch.reqs)
        else:
            self.steps.cold_majority = 2 * cold.num_cold(batch.reqs) > len(batch.reqs)

    def _is_decode(self, batch: Any) -> bool:
        return not (batch.forward_mode.is_extend() or batch.is_extend_in_batch or batch.forward_mode.is_idle())

    def fill_draft_kv(self, worker: Any, batch: Any) -> None:
        """Before a decode batch: make up for skipped draft-extends where it is time, see catch_up.py."""
        if self._defers and self._is_decode(batch):
            which = catch_up.due(batch.reqs, self.steps.for_batch(len(batch.reqs)), bool(self.steps.table))
            if which:
                catch_up.run(worker._draft_worker, batch, which)

    def remember_skipped(self, batch: Any, result: Any) -> None:
        """After a verification: note what the draft's KV lacks when the draft-extend will be skipped."""
        if self._defers and result.speculative_num_draft_tokens == 1 and not batch.forward_mode.is_idle():
            catch_up.remember(batch.reqs, batch.seq_lens_cpu.tolist(), result.logits_output.hidden_states)

    def before_draft_prefill(self, batch: Any) -> None:
        """A prefill of the draft fills its KV."""
        if self._defers:
            catch_up.forget(batch.reqs, batch.decoding_reqs or ())

    def steps_for_batch(self, batch_size: int) -> int:
        """Number of draft steps for the coming decode batch."""
        return self.steps.for_batch(batch_size)

    def skipped_draft_prefill(self, draft_worker: Any, batch: Any, next_ids: Any) -> Any:
        """Without a trained draft: an empty draft input instead of the draft's prefill, else None."""
        if not self._no_draft or batch.forward_mode.is_idle():
            return None
        cold.mark_cold(batch.reqs)
        return checks.empty_draft_input(draft_worker, batch, next_ids)

    def stage_prefill(self, batch: Any, result: Any) -> None:
        """Take hold of a prefill's aux states."""
        if self.tap is None or not self.tap.settings.collect or batch.forward_mode.is_idle():
            return
        output = result.logits_output
        hidden, extend = output.hidden_states, list(batch.extend_lens)
        checks.check_rows(hidden, sum(extend), self.tap.ring.layout.aux_width)
        if not self.tap.wants(batch.reqs):
            return
        logits = output.next_token_logits if self._prefill_logits and batch.sampling_info.is_all_greedy else None
        staged = Staged(hidden, logits, 0, list(batch.prefix_lens), extend)
        setattr(result, STAGED, self.device.stage(staged, self.settings.topk))

    def stage_verify(self, batch: Any, result: Any) -> None:
        """Take hold of a verification's aux states and logits."""
        if self.tap is None or not self.tap.settings.collect or batch.forward_mode.is_idle():
            return
        output = result.logits_output
        width = result.speculative_num_draft_tokens
        checks.check_rows(output.hidden_states, len(batch.seq_lens) * width, self.tap.ring.layout.aux_width)
        if not self.tap.wants(batch.reqs):
            return
        staged = self.device.stage(
            Staged(output.hidden_states, output.next_token_logits, width, [], []), self.settings.topk
        )
        setattr(result, STAGED, staged and self.tap.stage(batch.reqs, staged))

    def running(self) -> int:
        """Requests in the running batch."""
        batch = self.scheduler.running_batch
        return 0 if batch is None or batch.is_empty() else len(batch.reqs)

    def mark(self) -> Any:
        """A point in time for `after_verify`."""
        return self.device.clock.mark()

    def begin_step(self) -> Any:
        """A batch begins; the decode step before it is over. Returns the mark for `after_batch`."""
        return self.recorder.begin()

    def end_step(self) -> None:
        """The engine has nothing to run; the decode step before is over."""
        self.recorder.idle()

    def after_verify(self, worker: Any, result: Any, start: Any) -> None:
        """Remember the target's time, and the number of steps while the worker still knows it."""
        num_steps = worker.speculative_num_steps
        setattr(result, TIMES, Step(num_steps, start, self.device.clock.mark(), typical=self.steps.took(num_steps)))

    def after_batch(self, result: Any, start: Any) -> None:
        """A batch was launched: if it was a decode step, it is under way."""
        step = getattr(result, TIMES, None)
        if step is not None:
            self.recorder.launched(step, start)

    def lengths(self, batch: Any) -> list[int]:
        """Generated tokens of each request before the batch's result is processed."""
        return [len(req.output_ids) for req in batch.reqs]

    def count_step(self, batch: Any, result: Any) -> None:
        """A step's results are known. Steps with a cold request say nothing of the draft.

        With overlap scheduling a batch still holds the requests that ended one step before
        (managers/scheduler_components/batch_result_processor.py 819). What was accepted of them is counted too: a
        report means chains by verifications times batch size, and steps without such a request are rare in large
        batches.
        """
        step, correct = getattr(result, TIMES, None), result.num_correct_drafts_per_req_cpu
        if step is None or correct is None or step.start is None:
            return
        if not (step.num_steps and cold.num_cold(batch.reqs)):
            self.recorder.processed(step, len(batch.reqs), correct)

    def commit_verify(self, batch: Any, result: Any, before: list[int] | None) -> None:
        """Write a verification's accepted rows."""
        staged = getattr(result, STAGED, None)
        if self.tap is None or before is None:
            return
        if staged is None:
            self.tap.flush()  # what earlier batches left does not wait for the next captured one
        else:
            self.tap.commit_verify(batch.reqs, staged, before)

    def commit_prefill(self, batch: Any, result: Any, before: list[int] | None) -> None:
        """Write a prefill's rows."""
        staged = getattr(result, STAGED, None)
        if self.tap is None:
            return
        if staged is None:
            self.tap.flush()
        else:
            self.tap.commit_prefill(batch.reqs, staged)

    def on_idle(self) -> None:
        """Nothing to run: what is still on its way into the ring goes now."""
        if self.tap is not None:
            self.tap.flush()

    def on_internal_state(self, args: dict[str, float]) -> bool:
        """A command to all tensor-parallel ranks, see ranks.py. Between two batches. False: not obeyed."""
        try:
            table = ranks.table_of(args)
            if table is not None:
                self.steps.set_table(table)
            if ranks.SWAP in args:
                if self.swapper is None or not self.enabled("swap"):
                    raise EngineError("swap is off in this engine; see its problems")
                with self.step_lock:
                    self.swapper.apply_version(int(args[ranks.SWAP]), self._on_every_rank)
        except (EngineError, ValueError, OverflowError) as error:
            self.report(f"refused {args}: {error}", error)
            return False
        return True

    def _on_every_rank(self, ready: bool) -> bool:
        return agree.on_every_rank(self.scheduler, [ready])[0] if self.num_ranks > 1 else ready

    # The version in force.

    def _follow_version(self, version: int) -> None:
        """What depends on whether a trained draft is loaded."""
        trained = version != NO_DRAFT
        if self.tap is not None:
            self.tap.draft_version = version
        self.steps.allowed = trained
        controls_steps = self.enabled("steps") and 0 in self.steps.candidates
        self._no_draft = controls_steps and not trained
        self._defers = controls_steps and trained and self.device.defers_draft_extend and self.enabled("draft_kv")
        checks.set_skip_zero_step_extend(self._no_draft or self._defers)
