"""Celery's configuration. Messages are hints: no result is stored, no ETA is sent, and losing one only costs time."""

from kombu import Queue

from models.kernel.messages import PRIORITIES, SEPARATOR
from models.kernel.settings import settings

broker_url = settings().broker_url
broker_connection_retry_on_startup = True
broker_connection_max_retries = None  # a worker waits for Redis as long as it takes
broker_transport_options = {
    "queue_order_strategy": "priority",
    "priority_steps": list(PRIORITIES),
    "sep": SEPARATOR,
    "ack_emulation": False,  # rows say what is owed: noting in Redis who read a message costs two round trips each
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
}
broker_pool_limit = 4

task_queues = [Queue(name, exchange="", routing_key=name) for name in ("io", "cpu", "system", "hooks")]
task_default_queue = "system"
task_default_exchange = ""
task_default_routing_key = "system"
task_create_missing_queues = False
task_ignore_result = True
task_store_errors_even_if_ignored = False
task_acks_late = False
task_reject_on_worker_lost = False

imports = (
    "orchestrator_tasks.tickets.tasks",
    "orchestrator_tasks.engine.tasks",
    "orchestrator_tasks.kernel.bulk",
    "orchestrator_tasks.kernel.webhooks",
    "orchestrator_tasks.kernel.canary",
    "orchestrator_tasks.schedules",
)

accept_content = ["json"]
task_serializer = "json"
timezone = "UTC"
enable_utc = True

worker_prefetch_multiplier = 1
worker_disable_prefetch = True  # a message waits in its priority list, not in a worker's memory
worker_hijack_root_logger = False
worker_redirect_stdouts = False
worker_send_task_events = True
task_send_sent_event = True
worker_enable_remote_control = True
worker_soft_shutdown_timeout = 0  # the workers' own keeper ends what is running, see orchestrator_tasks/keeper.py
worker_cancel_long_running_tasks_on_connection_loss = False

# What happens every so often: seconds from one due time to the next. The rows of `schedules` decide what a tick runs.
SCHEDULES = {"tallies": 5.0, "engine_inputs": 2.0, "partitions": 60.0, "housekeeping": 600.0, "engine": 1.0}
beat_scheduler = "orchestrator_tasks.beat:BoundedScheduler"
beat_max_loop_interval = 1
# A tick that waited for long says nothing that a later one does not. The margin is for clocks that differ.
beat_schedule = {
    "tick": {
        "task": "schedules.tick",
        "schedule": 1.0,
        "options": {"queue": "system", "priority": 0, "expires": 30.0},
    }
}
