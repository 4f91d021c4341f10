"""What a process counts about itself, for Prometheus. What the database knows is read from it at scrape time."""

from prometheus_client import Counter, Histogram

BELLS = Counter("kassa_doorbell_bells_total", "Doorbell rings by outcome: rung, coalesced, error.", ["outcome"])
ACCEPTED = Counter("kassa_operations_accepted_total", "Operations accepted, by type.", ["type"])
REFUSED = Counter(
    "kassa_operations_refused_total", "Operations, or batches unread, refused for overload, by code.", ["code"]
)
REQUESTS = Counter(
    "kassa_http_requests_total", "Requests answered, by method, route and status.", ["method", "route", "status"]
)
REQUEST_SECONDS = Histogram("kassa_http_request_seconds", "Seconds to answer a request, by route.", ["route"])
