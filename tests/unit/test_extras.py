"""What the core does without its extras: the remote client is one, and costs nothing where no service is."""

import subprocess
import sys

WITHOUT = "import sys; sys.modules['aiohttp'] = None\n"
"""As if it were not installed."""


def ran(script: str) -> str:
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_queue_on_redis_imports_no_http_client() -> None:
    script = (
        "import sys; from uno.event_bus.dead_letter.blocking import DeadLetterQueue as Queue; "
        "Queue('redis://localhost'); print('uno.event_bus.dead_letter.remote.store' in sys.modules, "
        "'aiohttp' in sys.modules)"
    )
    assert ran(script) == "False False"


def test_a_remote_queue_without_the_extra_says_what_to_install() -> None:
    for made in ("DeadLetterQueue('http://dlq:8000')", "DeadLetterQueue.from_env({'DLQ_SERVICE_URL': 'https://dlq'})"):
        script = (
            f"{WITHOUT}from uno.event_bus.dead_letter import ConfigError, DeadLetterQueue\n"
            f"try: {made}\nexcept ConfigError as error: print(error)"
        )
        assert ran(script) == (
            "a queue behind a service needs an HTTP client, which is an extra: pip install 'uno-dead-letter[remote]'"
        )


def test_commands_through_a_service_say_it_too() -> None:
    script = f"{WITHOUT}from uno.cli.main import main; sys.argv = ['uno', 'dead-letter', 'stats']; main()"
    env = {"DLQ_SERVICE_URL": "http://127.0.0.1:9", "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == (
        "uno: error: a queue behind a service needs an HTTP client, which is an extra: "
        "pip install 'uno-dead-letter[remote]'\n"
    )
