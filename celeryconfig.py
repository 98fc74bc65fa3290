"""Celery's configuration. Messages are hints: no result is stored, no ETA is sent, and losing one only costs time."""

from kombu import Queue

from models.kernel.settings import settings

broker_url = settings().broker_url
broker_connection_retry_on_startup = True
broker_connection_max_retries = None  # a worker waits for Redis as long as it takes
broker_transport_options = {
    "queue_order_strategy": "priority",
    "priority_steps": [0, 1, 2, 3],  # critical, high, normal, low
    "sep": ":",
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

imports = ("orchestrator_tasks.tickets.tasks", "orchestrator_tasks.schedules")

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

# What happens every so often. The row of each in `schedules` decides whether a tick fires.
SCHEDULES = {"tallies": 5.0, "partitions": 60.0, "housekeeping": 600.0}
LONGEST_TICK = 30.0
beat_scheduler = "celery.beat:Scheduler"  # in memory: due times live in Postgres
beat_max_loop_interval = 5
beat_schedule = {
    name: {
        "task": "schedules.tick",
        "schedule": min(pace, LONGEST_TICK),  # a beat that restarts must not begin its count anew
        "kwargs": {"name": name},
        "options": {"queue": "system", "expires": 30.0},
    }
    for name, pace in SCHEDULES.items()
}
