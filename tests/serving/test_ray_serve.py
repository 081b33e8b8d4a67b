"""Ray Serve behind a real gateway. One Ray for the module; what it computes says who it is."""

import asyncio
import contextlib
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from doubles import Pointer, model, served, wait_until
from ray_fake import noted
from tiny_llama import save_llama, save_tokenizer

from penstock.errors import InvalidRequest, RecipeError, ServingError
from penstock.recipe_file import load_recipe
from penstock.registry import resolve
from penstock.serve_section import Serve
from penstock.serving.backends import ray_applications
from penstock.serving.backends.base import Generation, ModelFiles, Scaling
from penstock.serving.backends.ray_cluster import Cluster
from penstock.serving.backends.ray_serve import RayServeBackend
from penstock.serving.gateway import Surroundings
from penstock.serving.server import BackgroundServer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Shorter than thirty seconds, and longer than a busy machine keeps a renewal waiting.
LEASE_S = 9.0
# Ray Serve deprecates what it has no replacement for yet, each time it is asked.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
FAST = {"upscale_delay_s": 0.5, "downscale_delay_s": 1.0, "deploy_timeout_s": 120}


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    pytest.importorskip("grpc", reason="ray[serve] is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_applications, "LEASE_S", LEASE_S)
        joined = Cluster.joined(None, None)
        yield joined
        joined.leave()


@pytest.fixture(scope="module")
def new_folder(tmp_path_factory):
    """Makes folders that the fake can load; their names are what its answers begin with."""
    template = tmp_path_factory.mktemp("template")
    save_tokenizer(template)
    (template / "config.json").write_text('{"max_position_embeddings": 64}')

    def make(name):
        folder = tmp_path_factory.mktemp(name, numbered=False) / name
        shutil.copytree(template, folder)
        return folder

    return make


def files_of(folder, **changes):
    options = {"inside": {"ray_fake:RayFake": {}}, **FAST, **changes.pop("options", {})}
    settings = {"task": "classify", "scaling": Scaling(num_cpus=0.1), "recipe_folder": HERE}
    return ModelFiles(folder, folder / "cache", options, folder.name, **{**settings, **changes})


@contextlib.contextmanager
def loaded(files):
    backend = RayServeBackend(files)
    backend.load()
    try:
        yield backend
    finally:
        backend.close()


@pytest.fixture(scope="module")
def backend(cluster, new_folder):
    with loaded(files_of(new_folder("alone"))) as backend:
        yield backend


@pytest.fixture
def folder(backend):
    return backend._files.path


def seen_status(cluster, name):
    """What the gateway has seen a moment ago: asking in a loop would keep Ray Serve busy."""
    return cluster._seen.get(name)


def ask(backend, order):
    """The text of an answer."""

    async def collect():
        prompt_ids = backend._files.text.encode(order)
        chunks = [chunk async for chunk in backend.generate(Generation(prompt_ids, 60))]
        assert [chunk.finish_reason for chunk in chunks[-2:]] == [None, "stop"]
        return "".join(chunk.text for chunk in chunks)

    return asyncio.run(collect())


# -- without Ray -------------------------------------------------------------------


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


class TestApplications:
    """The actor, outside of Ray."""

    @pytest.fixture
    def world(self, monkeypatch):
        self.running, self.clock = [], Clock()
        monkeypatch.setattr(ray_applications, "_running", lambda: list(self.running))
        monkeypatch.setattr(ray_applications, "_delete", self.delete)
        return ray_applications.Applications(30.0, self.clock)

    def delete(self, name):
        self.running.remove(name)

    def play(self, scenario):
        asyncio.run(scenario())

    def test_only_one_deploys_and_the_others_wait(self, world):
        async def scenario():
            assert await world.begin("one", "penstock-a")
            assert not await world.begin("two", "penstock-a")
            assert await world.begin("two", "penstock-b")
            await world.deployed("one", "penstock-a")
            assert await world.begin("two", "penstock-a")

        self.play(scenario)

    def test_one_that_died_while_it_deployed_gives_way_when_its_lease_ends(self, world):
        async def scenario():
            assert await world.begin("one", "penstock-a")
            self.clock.now_s = 29
            assert not await world.begin("two", "penstock-a")
            self.clock.now_s = 31
            assert await world.begin("two", "penstock-a")

        self.play(scenario)

    def test_the_last_user_takes_the_application_along(self, world):
        async def scenario():
            self.running = ["penstock-a"]
            for user in ("one", "two"):
                await world.begin(user, "penstock-a")
                await world.deployed(user, "penstock-a")
            await world.end("one", "penstock-a")
            assert self.running == ["penstock-a"]
            await world.end("two", "penstock-a")
            await asyncio.gather(*world._tasks)
            assert self.running == []

        self.play(scenario)

    def test_nobody_begins_to_use_what_is_being_deleted(self, world, monkeypatch):
        deleting, may_go_on = threading.Event(), threading.Event()

        def delete(name):
            deleting.set()
            may_go_on.wait(10)

        monkeypatch.setattr(ray_applications, "_delete", delete)

        async def scenario():
            await world.begin("one", "penstock-a")
            await world.end("one", "penstock-a")
            await asyncio.to_thread(deleting.wait, 10)
            assert not await world.begin("two", "penstock-a")
            may_go_on.set()
            await asyncio.gather(*world._tasks)
            assert await world.begin("two", "penstock-a")

        self.play(scenario)

    def test_a_sweep_deletes_what_nobody_renews(self, world):
        async def scenario():
            self.running = ["penstock-a", "penstock-b"]
            for name in self.running:
                await world.begin("of " + name, name)
            self.clock.now_s = 20
            await world.renew({"of penstock-a": "penstock-a"})
            self.clock.now_s = 40
            await world.sweep()
            await asyncio.gather(*world._tasks)
            assert self.running == ["penstock-a"]

        self.play(scenario)

    def test_an_actor_that_had_to_start_again_first_waits_for_who_is_there(self, world):
        async def scenario():
            self.running = ["penstock-a", "penstock-b"]
            self.clock.now_s = 25
            await world.sweep()
            assert self.running == ["penstock-a", "penstock-b"]
            await world.renew({"one": "penstock-a"})
            self.clock.now_s = 35
            await world.sweep()
            await asyncio.gather(*world._tasks)
            assert self.running == ["penstock-a"]

        self.play(scenario)


class TestSettings:
    def test_what_cannot_be_inside_is_refused_with_the_reason(self, tmp_path):
        for inside, task, said in (
            ("ctranslate2", "embed", "ctranslate2 cannot embed; it can generate"),
            ("ray_serve", "generate", "no model to make copies of"),
        ):
            with pytest.raises(RecipeError, match=said):
                RayServeBackend(files_of(tmp_path, options={"inside": inside}, task=task))

    def test_options_of_the_backend_inside_are_checked_with_the_recipe(self):
        with pytest.raises(ValueError, match="max_batc"):
            RayServeBackend.Options(inside={"ctranslate2": {"max_batc": 1}})

    def test_rays_client_is_refused_because_it_does_not_stream(self):
        with pytest.raises(ValueError, match="do not stream"):
            RayServeBackend.Options(address="ray://head:10001")

    def test_everything_that_changes_answers_or_copies_is_another_application(self, tmp_path):
        def name(**changes):
            return RayServeBackend(files_of(tmp_path, **changes))._name

        changes = (
            {},
            {"options": {"inside": {"ray_fake:RayFake": {"load_s": 1}}}},
            {"options": {"drain_timeout_s": 5}},
            {"scaling": Scaling(max_replicas=2, num_cpus=0.1)},
            {"max_concurrency": 7},
            {"labels": ("yes",)},
        )
        assert len({name(**one) for one in changes}) == len(changes)
        assert name() == name(options={"address": "auto"})

    def test_replicas_that_one_gateway_cannot_fill_are_said(self, tmp_path, caplog):
        scaling = Scaling(max_replicas=10, target_ongoing_requests=5)
        backend = RayServeBackend(files_of(tmp_path, scaling=scaling, max_concurrency=16))
        backend._warn_of_copies_nobody_fills()
        assert "work for 4 replicas of 5; there may be 10" in caplog.text

    def test_the_recipe_that_is_shown_says_what_we_promise(self):
        models = load_recipe(ROOT / "recipes" / "serve-on-ray.yaml").serve.models
        generating = next(one for one in models.values() if one.task == "generate")
        embedding = next(one for one in models.values() if one.task == "embed")
        assert {one.backend_name for one in (generating, embedding)} == {"ray_serve"}
        copies = generating.replicas
        assert (copies.min, copies.max, copies.target_ongoing_requests) == (2, 10, 5)
        assert (embedding.replicas.min, embedding.replicas.max) == (1, 4)
        assert generating.resources.num_gpus == 1
        assert embedding.resources.num_gpus == 0.5
        # Or the last copies would never come.
        for one in (generating, embedding):
            most = one.replicas.max * one.replicas.target_ongoing_requests
            assert one.max_concurrency >= most


# -- one application ---------------------------------------------------------------


@pytest.mark.slow
class TestOneApplication:
    def test_closing_the_iterator_ends_the_answer_in_the_replica(self, backend, folder):
        async def scenario():
            prompt_ids = backend._files.text.encode("hang")
            answer = backend.generate(Generation(prompt_ids, 60))
            first = await anext(answer)
            assert noted(folder, "cancelled") == set()
            await answer.aclose()
            return int(first.text.split()[1])

        pid = asyncio.run(scenario())
        wait_until(lambda: noted(folder, "cancelled") == {pid})

    def test_a_stream_arrives_piece_by_piece(self, backend):
        assert ask(backend, "count 5").endswith(" 0 1 2 3 4")

    def test_vectors_scores_and_labels_come_back(self, backend):
        async def scenario():
            vectors, num_tokens = await backend.embed(["a", "bcd"])
            scores, _ = await backend.rerank("q", ["a", "b"])
            probabilities, _ = await backend.classify(["a"])
            return vectors.tolist(), num_tokens, scores.tolist(), probabilities.shape

        assert asyncio.run(scenario()) == ([[1, 1.5], [3, 1.5]], 4, [0.5, 0.5], (1, 2))
        assert backend.labels == ("yes", "no")

    def test_an_error_of_the_request_comes_back_as_itself(self, backend):
        with pytest.raises(InvalidRequest) as caught:
            ask(backend, "refuse")
        assert (caught.value.message, caught.value.hint) == ("No.", "Ask otherwise.")
        assert caught.value.param == "prompt"

    def test_what_broke_in_the_replica_is_not_told_to_clients(self, backend):
        with pytest.raises(ServingError) as caught:
            ask(backend, "break")
        assert "secret" not in caught.value.message

    def test_a_second_gateway_takes_over_what_runs_and_the_last_one_ends_it(
        self, cluster, new_folder
    ):
        files = files_of(new_folder("shared"))
        with loaded(files) as first:
            with loaded(files) as second:
                assert ask(first, "say") == ask(second, "say")
            assert ask(first, "say").startswith("shared")
            assert len(noted(files.path, "loaded")) == 1
            name = first._name
        wait_until(lambda: seen_status(cluster, name) is None)
        assert noted(files.path, "closed") == noted(files.path, "loaded")

    def test_one_whose_gateway_was_killed_goes_when_its_lease_ends(
        self, cluster, new_folder, backend
    ):
        orphan = RayServeBackend(files_of(new_folder("orphan")))
        orphan.load()
        assert asyncio.run(orphan.healthy())  # it answers from the moment it is loaded
        cluster.unuse(orphan._use)  # a killed gateway renews nothing
        wait_until(lambda: seen_status(cluster, orphan._name) is None)
        # Ours, which is as old, was renewed.
        assert cluster.status(backend._name) is not None
        orphan.close()

    def test_an_application_that_somebody_deleted_comes_back(self, cluster, backend, folder):
        before = noted(folder, "loaded")
        cluster.serve.delete(backend._name, _blocking=False)
        wait_until(lambda: noted(folder, "loaded") != before, 60)
        wait_until(lambda: asyncio.run(backend.healthy()), 60)
        assert ask(backend, "say").startswith("alone")

    def test_a_model_that_does_not_load_says_why_and_leaves_nothing(self, cluster, new_folder):
        folder = new_folder("damaged")
        (folder / "broken").touch()
        backend = RayServeBackend(files_of(folder))
        with pytest.raises(ServingError, match="damaged is broken on purpose"):
            backend.load()
        wait_until(lambda: seen_status(cluster, backend._name) is None)

    def test_one_that_there_is_no_room_for_is_given_up_in_time(self, cluster, new_folder):
        greedy = Scaling(num_cpus=1000)
        # Ray Serve waits for copies that it has not even started, as if they had answers to end.
        options = {"deploy_timeout_s": 1, "drain_timeout_s": 1}
        files = files_of(new_folder("greedy"), scaling=greedy, options=options)
        backend = RayServeBackend(files)
        with pytest.raises(ServingError, match=r"did not come up .* within 1 s: "):
            backend.load()
        wait_until(lambda: seen_status(cluster, backend._name) is None)

    def test_a_model_is_read_as_without_ray(self, cluster, tmp_path):
        save_llama(tmp_path / "llama", seed=3)
        files = ModelFiles(
            tmp_path / "llama",
            tmp_path / "cache",
            {"inside": {"ctranslate2": {"parallel_batches": 1}}},
            "llama",
            scaling=Scaling(num_cpus=0.1),
        )
        alone = resolve("backends", "ctranslate2")(ModelFiles(files.folder, files.cache))
        alone.load()

        async def answers(backend):
            prompts = ("<s>the quick", "<s>café", "water")
            requests = [Generation(files.text.encode(one), 40, temperature=0) for one in prompts]
            collected = [[chunk async for chunk in backend.generate(one)] for one in requests]
            return [
                (
                    [token_id for chunk in chunks for token_id in chunk.token_ids],
                    "".join(chunk.text for chunk in chunks),
                    chunks[-1].finish_reason,
                )
                for chunks in collected
            ]

        with loaded(files) as backend:
            assert asyncio.run(answers(backend)) == asyncio.run(answers(alone))
        alone.close()


# -- behind a gateway --------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(new_folder):
    return {1: new_folder("v1"), 2: new_folder("v2")}


@pytest.fixture(scope="module")
def pointer(folders):
    return Pointer(served(folders[1], 1))


@pytest.fixture(scope="module")
def gateway(cluster, pointer, tmp_path_factory):
    options = {"inside": {"ray_fake:RayFake": {}}, **FAST}
    penny = model(
        "ray_serve",
        options,
        replicas={"min": 1, "max": 2, "target_ongoing_requests": 2},
        resources={"num_cpus": 0.1},
    )
    config = Serve(port=0, metrics_port=None, models={"penny": penny}, poll_interval_s=0.05)
    cache = tmp_path_factory.mktemp("cache")
    with BackgroundServer(config, Surroundings(pointer, cache, HERE)) as server:
        server.wait_ready()
        yield server


def complete(client, order):
    """Status, version and text of an answer."""
    body = {"model": "penny", "prompt": order, "max_tokens": 20}
    reply = client.post("/v1/completions", json=body)
    text = reply.json()["choices"][0]["text"] if reply.status_code == 200 else reply.text
    return reply.status_code, reply.headers.get("x-penstock-model-version"), text


@contextlib.contextmanager
def load(server, num_clients, order="work 0.1"):
    """Clients that ask without a pause; yields what they were answered."""
    answers, stopped = [], threading.Event()

    def hammer():
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not stopped.is_set():
                answers.append(complete(client, order))

    with ThreadPoolExecutor(num_clients) as pool:
        running = [pool.submit(hammer) for _ in range(num_clients)]
        try:
            yield answers
        finally:
            stopped.set()
        for one in running:
            one.result()


def num_running(cluster, server):
    name = server.gateway.models["penny"].table.current.backend._name
    return seen_status(cluster, name).deployments["model"].replica_states.get("RUNNING", 0)


@pytest.mark.slow
class TestBehindAGateway:
    def test_replicas_come_with_the_load_and_go_after_it(self, cluster, gateway):
        assert num_running(cluster, gateway) == 1
        with load(gateway, 8) as answers:
            wait_until(lambda: num_running(cluster, gateway) == 2, 60)
            seen = len(answers)
            wait_until(lambda: len({text for _, _, text in answers[seen:]}) == 2)
        assert [answer for answer in answers if answer[0] != 200] == []
        wait_until(lambda: num_running(cluster, gateway) == 1, 60)

    def test_answers_of_a_killed_replica_are_computed_by_another(self, gateway, folders):
        with httpx.Client(base_url=gateway.url, timeout=60) as client:
            pid = int(complete(client, "say")[2].split()[1])
            # More than the breaker takes, if they were counted as failures of the model.
            with ThreadPoolExecutor(8) as pool:
                asked = [pool.submit(complete, client, "work 1") for _ in range(8)]
                time.sleep(0.5)
                os.kill(pid, signal.SIGKILL)
                answers = [one.result() for one in asked]
        assert [answer for answer in answers if answer[0] != 200] == []
        assert str(pid) not in {text.split()[1] for _, _, text in answers}

    def test_updates_under_load_there_and_back_fail_and_cut_nothing(
        self, cluster, gateway, pointer, folders
    ):
        with load(gateway, 4, "work 0.05") as answers:
            for epoch, number in ((2, 2), (3, 1)):
                old = gateway.gateway.models["penny"].table.current.backend._name
                pointer.version = served(folders[number], number, epoch)
                self.follow_an_update(gateway, cluster, old, folders[number], answers)
        assert [answer for answer in answers if answer[0] != 200] == []
        assert {(version, text.split()[0]) for _, version, text in answers} == {
            ("1", "v1"),
            ("2", "v2"),
        }

    def follow_an_update(self, gateway, cluster, old, folder, answers):
        before = noted(folder, "loaded")
        wait_until(lambda: noted(folder, "loaded") - before, 60)
        assert cluster.status(old).status == "RUNNING"  # start before stop
        with httpx.Client(base_url=gateway.url, timeout=60) as client:
            assert complete(client, "count 200")[2].endswith(" 199")
        wait_until(lambda: answers[-1][2].startswith(folder.name), 60)
        seen = len(answers)
        wait_until(lambda: len(answers) > seen + 20)
        wait_until(lambda: seen_status(cluster, old) is None, 60)
