"""The admin pages, against their own process: who gets in, what is shown, and how little can be changed."""

import html
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import itsdangerous
import pytest
import sqlalchemy as sa

from cli.servers import LOOPBACK, free_port
from cli.stack import ROOT, procfile
from tests.end_to_end.conftest import PASSWORD, Kassa, User

PAGES = ("user", "account", "operation", "entry", "service", "rate")
READ_ONLY = ("account", "operation", "entry", "rate")
REFUSALS = (403, 404, 405)
EMPTY_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
LINK = re.compile(r'(?:href|src|action)="([^"]*)"')
PAGES_CRAWLED_MAX = 80
NOBODY = "00000000-0000-0000-0000-000000000000"


class Administrator:
    """A browser without a screen, logged in."""

    def __init__(self, kassa: Kassa, user: User) -> None:
        self.user = user
        self.http = client(kassa)
        assert log_in(self.http, user.name).headers["location"] == f"{kassa.admin}/"

    def page(self, path: str) -> str:
        """The text of a page."""
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return html.unescape(answer.text)

    def post(self, path: str, **form: str) -> httpx.Response:
        """Send a form."""
        return self.http.post(path, data=form)


def client(kassa: Kassa) -> httpx.Client:
    return httpx.Client(base_url=kassa.admin, timeout=30)


def log_in(http: httpx.Client, username: str, password: str = PASSWORD) -> httpx.Response:
    return http.post("/login", data={"username": username, "password": password})


def set_role(kassa: Kassa, user: User, role: str) -> None:
    with kassa.engine.begin() as connection:
        connection.execute(sa.text("UPDATE users SET role = :role WHERE id = :id"), {"role": role, "id": user.id})


def column(kassa: Kassa, query: str, **parameters: object) -> list:
    with kassa.engine.connect() as connection:
        return list(connection.execute(sa.text(query), parameters).scalars())


@pytest.fixture
def administrator(kassa: Kassa) -> Iterator[Administrator]:
    user = kassa.user()
    set_role(kassa, user, "admin")
    made = Administrator(kassa, user)
    with closing(made.http):
        yield made


# Who gets in


@pytest.mark.parametrize("path", ["/", *(f"/{page}/list" for page in PAGES), "/service/create", f"/user/edit/{NOBODY}"])
def test_every_page_asks_for_a_login(kassa: Kassa, path: str):
    with client(kassa) as http:
        answers = [http.get(path), http.get(path, headers={"Cookie": "kassa_admin=forged"})]
        if path.count("/") > 1 and "list" not in path:
            answers.append(http.post(path, data={"name": "x"}))
    for answer in answers:
        assert (answer.status_code, answer.headers["location"]) == (302, f"{kassa.admin}/login")


@pytest.mark.parametrize("role", ["user", "service", "auditor"])
def test_only_administrators_get_in(kassa: Kassa, role: str):
    user = kassa.user()
    set_role(kassa, user, role)
    with client(kassa) as http:
        answers = [log_in(http, user.name), log_in(http, user.name, "wrong"), log_in(http, "nobody-" + user.name)]
        assert {answer.status_code for answer in answers} == {400}
        assert len({answer.text for answer in answers}) == 1, "the same answer, whatever is not right"
        assert http.get("/").status_code == 302


def test_a_disabled_administrator_does_not_get_in(kassa: Kassa, administrator: Administrator):
    with kassa.engine.begin() as connection:
        query = sa.text("UPDATE users SET disabled_at = clock_timestamp() WHERE id = :id")
        connection.execute(query, {"id": administrator.user.id})
    assert administrator.http.get("/").status_code == 302, "at once"
    with client(kassa) as http:
        assert log_in(http, administrator.user.name).status_code == 400


def test_a_lost_role_ends_the_session_at_once(kassa: Kassa, administrator: Administrator):
    set_role(kassa, administrator.user, "auditor")
    assert administrator.http.get("/user/list").status_code == 302


def test_the_cookie_is_kept_from_scripts_and_other_sites(kassa: Kassa, administrator: Administrator):
    with client(kassa) as http:
        cookie = log_in(http, administrator.user.name).headers["set-cookie"].lower()
    assert {"httponly", "samesite=strict", "max-age=28800"} <= set(cookie.split("; "))


def test_the_cookie_is_not_signed_with_the_secret_key_itself(kassa: Kassa, administrator: Administrator):
    secret = kassa.stack.environment["SECRET_KEY"]
    [payload] = [value.rsplit(".", 2)[0] for value in administrator.http.cookies.values()]
    forged = itsdangerous.TimestampSigner(secret).sign(payload).decode()
    with client(kassa) as http:
        assert http.get("/", headers={"Cookie": f"kassa_admin={forged}"}).status_code == 302


def test_logging_out_ends_the_session_for_a_copy_of_the_cookie_too(kassa: Kassa, administrator: Administrator):
    copied = dict(administrator.http.cookies)
    with client(kassa) as thief:
        thief.cookies.update(copied)
        assert thief.get("/").status_code == 200
        assert administrator.http.get("/logout").status_code == 302
        assert thief.get("/").status_code == 302


def test_tries_are_limited_even_for_the_right_password(kassa: Kassa, administrator: Administrator):
    with client(kassa) as http:
        statuses = [log_in(http, administrator.user.name, "wrong").status_code for _ in range(11)]
        assert statuses == [400] * 10 + [429]
        last = log_in(http, administrator.user.name)
    assert (last.status_code, "Too many tries" in last.text) == (429, True)


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
    ids=["origin", "null", "fetch-site"],
)
def test_a_form_from_another_site_changes_nothing(kassa: Kassa, administrator: Administrator, headers: dict[str, str]):
    form = {"name": "From elsewhere", "description": "", "price": "1", "currency": "RUB"}
    assert administrator.http.post("/service/create", data=form, headers=headers).status_code == 403
    assert column(kassa, "SELECT name FROM services WHERE name = 'From elsewhere'") == []


# What is shown


def test_users_are_found_by_a_part_of_their_name(kassa: Kassa, administrator: Administrator):
    user, other = kassa.user(), kassa.user()
    user.operate(type="withdrawal", amount=1)  # refused, for want of money: finished, too
    user.operate(type="deposit", amount=5)
    page = administrator.page(f"/user/list?search={user.name[:-1]}")
    assert f">{user.name}<" in page.replace("\n", "")
    assert other.name not in administrator.page(f"/user/list?search={user.id}")
    details = administrator.page(f"/user/details/{user.id}")
    assert "RUB: 0.05 RUB" in details
    assert "operations finished, without a gap</td> <td>2</td>" in " ".join(details.split())
    assert f"/account/details/{user.account_id}" in details


def test_operations_are_found_by_user_key_and_id(kassa: Kassa, administrator: Administrator):
    user, other = kassa.user(deposit=10050), kassa.user(deposit=777)
    key = f"key-{user.id}"
    operation = user.operate(type="withdrawal", amount=50, key=key).json()["id"]
    for term in (key, operation):
        page = administrator.page(f"/operation/list?search={term}")
        assert "0.50 RUB" in page
        assert "Showing 1 to 1 of 1 items" in " ".join(page.split())
    for term in (user.name, user.id, user.account_id):
        page = administrator.page(f"/operation/list?search={term}")
        assert "100.50 RUB" in page
        assert other.id not in page
    assert operation not in administrator.page(f"/operation/list?search={user.name}&type=deposit")
    assert operation in administrator.page(f"/operation/list?search={user.name}&type=withdrawal&status=applied")
    assert operation not in administrator.page(f"/operation/list?search={user.name}&status=failed")
    assert "UTC" in administrator.page(f"/operation/details/{operation}")


def test_accounts_and_entries_are_found(kassa: Kassa, administrator: Administrator):
    user = kassa.user(deposit=10050)
    for term in (user.account_id, user.name, user.id):
        assert "100.50 RUB" in administrator.page(f"/account/list?search={term}")
    [operation] = column(kassa, "SELECT operation_id FROM entries WHERE account_id = :id", id=user.account_id)
    assert f"/entry/details/{user.account_id};1" in administrator.page(f"/entry/list?search={user.account_id}")
    both = administrator.page(f"/entry/list?search={operation}")
    assert ("-100.50 RUB" in both, "Showing 1 to 2 of 2 items" in " ".join(both.split())) == (True, True)
    assert operation in administrator.page(f"/entry/details/{user.account_id};1")
    assert "0 of 0 items" in administrator.page("/entry/list?search=neither-account-nor-operation")


def test_every_link_leads_to_a_page_and_none_leads_away(kassa: Kassa, administrator: Administrator):
    user = kassa.user(deposit=10050)
    user.operate(type="transfer", amount=50, to_user_id=administrator.user.id)
    waiting, seen = [f"/user/details/{user.id}", "/", "/service/create", "/nothing/list"], set()
    while waiting and len(seen) < PAGES_CRAWLED_MAX:
        path = waiting.pop(0)
        seen.add(path)
        answer = administrator.http.get(path)
        assert answer.status_code == (404 if path == "/nothing/list" else 200), path
        if answer.headers["content-type"].startswith("text/html"):
            assert "argon2" not in answer.text, path
            assert "password_hash" not in answer.text, path
        for link in map(html.unescape, LINK.findall(answer.text)):
            address = urlsplit(link)
            assert address.scheme in ("", "http", "data"), link
            assert address.netloc in ("", urlsplit(kassa.admin).netloc), link
            path = address._replace(scheme="", netloc="", fragment="").geturl()
            if address.scheme != "data" and path not in ("", "/logout", *seen, *waiting):
                waiting.append(path)
    assert len(seen) > 20


def test_scripts_and_styles_name_no_other_host(kassa: Kassa, administrator: Administrator):
    assets = [path for path in LINK.findall(administrator.page("/service/create")) if "/statics/" in path]
    assert len(assets) > 5
    for asset in assets:
        text = administrator.http.get(asset).text
        assert re.findall(r"(?:url\(|@import|src=|fetch\()\s*[\"']?https?://[^\s\"')]+", text) == [], asset


@pytest.mark.parametrize(
    "path",
    [
        "/user/details/x",
        "/operation/details/' OR 1=1",
        "/entry/details/1",
        f"/entry/details/{NOBODY};9999999999999999999999",
        "/user/edit/x",
        f"/service/edit/{NOBODY}",
        "/user/list?pageSize=0",
        "/user/list?page=x",
        "/user/list?sortBy=password_hash",
        "/user/list?search=%00",
        "/user/details/%00",
    ],
)
def test_a_bad_address_is_answered(administrator: Administrator, path: str):
    assert administrator.http.get(path).status_code in (400, 404)


def test_answers_forbid_framing_and_foreign_scripts_and_are_not_kept(administrator: Administrator):
    headers = administrator.http.get("/user/list").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


def test_a_database_that_does_not_answer_is_a_page_and_not_a_defect(kassa: Kassa, administrator: Administrator):
    with kassa.engine.connect() as connection:
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.exec_driver_sql("LOCK TABLE services IN ACCESS EXCLUSIVE MODE")
        answer = administrator.http.get("/service/list")
        connection.rollback()
    assert (answer.status_code, "does not answer" in answer.text) == (503, True)
    assert administrator.http.get("/service/list").status_code == 200


# What can be changed


@pytest.mark.parametrize("page", READ_ONLY)
def test_money_is_read_only_for_direct_requests_too(kassa: Kassa, administrator: Administrator, page: str):
    user = kassa.user(deposit=10050)
    key = {
        "account": user.account_id,
        "operation": column(kassa, "SELECT id FROM operations WHERE user_id = :id", id=user.id)[0],
        "entry": f"{user.account_id};1",
        "rate": "USD;2026-01-01",
    }[page]
    counts = (
        "SELECT count(*) FROM operations UNION ALL SELECT count(*) FROM entries UNION ALL SELECT count(*) FROM rates"
    )
    before = column(kassa, counts)
    form = {"balance": "1", "amount": "1", "status": "failed", "rubles": "1", "save": "Save"}
    tried = [
        administrator.post(f"/{page}/edit/{key}", **form),
        administrator.http.get(f"/{page}/edit/{key}"),
        administrator.http.delete(f"/{page}/delete?pks={key}"),
        administrator.http.post(f"/{page}/delete?pks={key}", headers=EMPTY_FORM),
        administrator.post(f"/{page}/import", **form),
        administrator.http.put(f"/{page}/details/{key}", data=form),
        administrator.http.patch(f"/{page}/details/{key}", data=form),
    ]
    if page != "account":
        tried += [administrator.post(f"/{page}/create", **form), administrator.http.get(f"/{page}/create")]
    assert [answer.status_code for answer in tried if answer.status_code not in REFUSALS] == []
    assert column(kassa, counts) == before
    assert user.balance() == 10050


def test_a_body_that_nobody_reads_does_not_cost_the_next_request_its_connection(kassa: Kassa):
    address = urlsplit(kassa.admin)
    with socket.create_connection((address.hostname, address.port), timeout=10) as made:
        for _ in range(2):
            made.sendall(b"PUT /login HTTP/1.1\r\nHost: kassa\r\nContent-Length: 1\r\n\r\n")
            time.sleep(0.1)  # the body comes after the head, as it does from most clients
            made.sendall(b"x")
            assert made.recv(65536).startswith(b"HTTP/1.1 405 ")


def test_users_and_services_are_never_deleted(kassa: Kassa, administrator: Administrator):
    user = kassa.user()
    for page in ("user", "service"):
        assert administrator.http.delete(f"/{page}/delete?pks={user.id}").status_code in REFUSALS
    assert administrator.http.get("/user/create").status_code in REFUSALS
    assert user.get("/v1/balance").status_code == 200


def test_an_account_is_opened_empty(kassa: Kassa, administrator: Administrator):
    user = kassa.user()
    form = {"user": user.name, "currency": "EUR", "name": "savings", "save": "Save", "balance": "1000"}
    assert administrator.post("/account/create", **form).status_code == 302
    query = "SELECT balance FROM accounts WHERE user_id = :id AND currency = 'EUR' AND name = 'savings'"
    assert column(kassa, query, id=user.id) == [0]
    assert "savings" in administrator.page(f"/user/details/{user.id}")


@pytest.mark.parametrize(
    "change", [{"user": "nobody at all"}, {"currency": "XXX"}, {"currency": ""}, {"name": "x" * 101}]
)
def test_an_account_that_cannot_be_is_refused(kassa: Kassa, administrator: Administrator, change: dict[str, str]):
    before = column(kassa, "SELECT count(*) FROM accounts")
    form = {"user": administrator.user.name, "currency": "EUR", "name": ""} | change
    assert administrator.post("/account/create", **form).status_code == 400
    assert column(kassa, "SELECT count(*) FROM accounts") == before


def test_a_service_is_created_and_changed(kassa: Kassa, administrator: Administrator):
    name = f"Yoga {time.monotonic_ns()}"
    form = {"name": name, "description": "", "price": "100.50", "currency": "USD", "active": "y", "save": "Save"}
    assert administrator.post("/service/create", **form).status_code == 302
    [service_id] = column(kassa, "SELECT id FROM services WHERE name = :name AND price = 10050 AND active", name=name)
    assert "100.50 USD" in administrator.page(f"/service/list?search={name}")
    assert 'value="100.50"' in administrator.page(f"/service/edit/{service_id}")
    del form["active"]
    assert (
        administrator.post(f"/service/edit/{service_id}", **form | {"price": "99", "currency": "JPY"}).status_code
        == 302
    )
    assert column(kassa, "SELECT price FROM services WHERE id = :id AND NOT active", id=service_id) == [99]


@pytest.mark.parametrize(
    "change",
    [
        *({"price": price} for price in ("0", "-1", "0.001", "1e3", "NaN", "", "9" * 17, "٣")),
        {"currency": "ABC"},
        {"currency": "JPY"},
        {"name": ""},
        {"name": "x" * 101},
    ],
    ids=lambda change: "-".join(f"{name}={value[:5]}" for name, value in change.items()),
)
def test_a_service_that_cannot_be_is_refused(kassa: Kassa, administrator: Administrator, change: dict[str, str]):
    before = column(kassa, "SELECT count(*) FROM services")
    form = {"name": "Yoga", "description": "", "price": "100.50", "currency": "RUB"} | change
    answer = administrator.post("/service/create", **form)
    assert (answer.status_code, "invalid-feedback" in answer.text) == (400, True)
    assert column(kassa, "SELECT count(*) FROM services") == before


def test_a_changed_role_takes_effect(kassa: Kassa, administrator: Administrator):
    user = kassa.user()
    form = {"first_name": "Grace", "last_name": "Hopper", "role": "admin", "save": "Save"}
    assert administrator.post(f"/user/edit/{user.id}", **form).status_code == 302
    made = Administrator(kassa, user)
    with closing(made.http):
        assert "Hopper" in made.page(f"/user/details/{user.id}")
        assert administrator.post(f"/user/edit/{user.id}", **form | {"role": "user"}).status_code == 302
        assert made.http.get("/").status_code == 302
    assert administrator.post(f"/user/edit/{user.id}", **form | {"role": "emperor"}).status_code == 400


def test_a_disabled_user_is_out_and_an_enabled_one_may_come_back(kassa: Kassa, administrator: Administrator):
    user = kassa.user()
    form = {"first_name": "", "last_name": "", "role": "user", "save": "Save"}
    administrator.post(f"/user/edit/{user.id}", **form, disabled="y")
    assert user.get("/v1/balance").status_code == 401
    administrator.post(f"/user/edit/{user.id}", **form)
    assert user.get("/v1/balance").status_code == 401, "the old sessions have ended"
    again = kassa.http.post("/v1/auth/login", json={"username": user.name, "password": PASSWORD})
    assert again.status_code == 200


def test_only_what_the_form_holds_is_changed(kassa: Kassa, administrator: Administrator):
    user = kassa.user()
    form = {"first_name": "x", "last_name": "y", "role": "user", "username": "other", "password_hash": "z", "lane": "0"}
    administrator.post(f"/user/edit/{user.id}", **form)
    again = kassa.http.post("/v1/auth/login", json={"username": user.name, "password": PASSWORD})
    assert again.status_code == 200


def test_nobody_changes_their_own_role(administrator: Administrator):
    form = {"first_name": "", "last_name": "", "role": "user"}
    assert administrator.post(f"/user/edit/{administrator.user.id}", **form).status_code == 403
    assert f"/user/edit/{administrator.user.id}" not in administrator.page(f"/user/details/{administrator.user.id}")


def test_changes_are_logged_with_who_made_them(administrator: Administrator, log_directory: Path):
    name = f"Logged {time.monotonic_ns()}"
    administrator.post("/service/create", name=name, description="", price="1", currency="RUB")
    [line] = [line for line in (log_directory / "admin.log").read_text().splitlines() if name in line]
    assert line.startswith("{")
    assert f'"by": "{administrator.user.name}"' in line


def test_a_form_is_short_and_says_how_long_it_is(administrator: Administrator):
    assert administrator.post("/service/create", name="x" * 70_000).status_code == 413
    assert administrator.http.post("/service/create", content=iter([b"name=x"])).status_code == 411


@pytest.mark.parametrize(
    ("page", "field"),
    [
        *(("/service/create", field) for field in ("name", "description", "price", "currency")),
        ("/account/create", "user"),
        ("/account/create", "name"),
        ("/user/edit/{}", "first_name"),
        ("/login", "username"),
    ],
)
def test_a_file_is_no_text(kassa: Kassa, administrator: Administrator, page: str, field: str):
    form = {"name": "Yoga", "description": "", "price": "1", "currency": "RUB", "user": administrator.user.name}
    form |= {"first_name": "x", "last_name": "x", "role": "user", "username": "x", "password": "x"}
    del form[field]
    answer = administrator.http.post(page.format(kassa.user().id), data=form, files={field: ("hostname", b"a host")})
    assert answer.status_code == 415


@pytest.mark.parametrize("kind", ["", "x", "text/plain", "application/json", "multipart/form-data; boundary=x"])
def test_nothing_but_a_form_is_taken(kassa: Kassa, administrator: Administrator, kind: str):
    body, headers = b"name=Not+a+form&price=1&currency=RUB", {"Content-Type": kind} if kind else {}
    assert administrator.http.post("/service/create", content=body, headers=headers).status_code == 415
    assert column(kassa, "SELECT name FROM services WHERE name = 'Not a form'") == []


def test_a_form_may_name_its_character_set(administrator: Administrator):
    headers = {"Content-Type": "Application/X-WWW-Form-URLEncoded ; charset=UTF-8"}
    body = b"name=Spelled&description=&price=1&currency=RUB"
    assert administrator.http.post("/service/create", content=body, headers=headers).status_code == 302


def test_the_pages_send_what_is_taken(kassa: Kassa, administrator: Administrator):
    tricky = 'x enctype="multipart/form-data" x'
    form = {"name": tricky, "description": tricky, "price": "1", "currency": "RUB"}
    assert administrator.post("/service/create", **form).status_code == 302
    service_id = column(kassa, "SELECT id FROM services WHERE name = :name", name=tricky)[0]
    for path in ("/service/create", "/account/create", f"/user/edit/{kassa.user().id}", f"/service/edit/{service_id}"):
        text = administrator.http.get(path).text
        [tag] = re.findall(r'<form [^>]*method="POST"[^>]*>', text)
        assert "enctype" not in tag, path
    assert html.unescape(text).count(tricky) == 2, "what was stored is shown as it is"


# What the database says


@pytest.mark.parametrize("field", ["first_name", "last_name"])
def test_a_name_that_is_not_sent_is_empty(kassa: Kassa, administrator: Administrator, log_directory: Path, field: str):
    user, form = kassa.user(), {"role": "user", "first_name": "x", "last_name": "x"}
    del form[field]
    answer = administrator.post(f"/user/edit/{user.id}", **form)
    assert "$argon2" not in html.unescape(answer.text)
    assert "$argon2" not in (log_directory / "admin.log").read_text()
    assert answer.status_code == 302
    assert column(kassa, f"SELECT {field} FROM users WHERE id = :id", id=user.id) == [""]


def test_a_text_that_is_not_sent_is_empty(kassa: Kassa, administrator: Administrator):
    user, name = kassa.user(), f"Short {time.monotonic_ns()}"
    assert administrator.post("/service/create", name=name, price="1", currency="RUB").status_code == 302
    assert column(kassa, "SELECT description FROM services WHERE name = :name", name=name) == [""]
    assert administrator.post("/account/create", user=user.name, currency="CHF").status_code == 302
    assert column(kassa, "SELECT name FROM accounts WHERE user_id = :id AND currency = 'CHF'", id=user.id) == [""]
    for path in ("/service/create", "/account/create", f"/user/edit/{user.id}"):
        answer = administrator.post(path, save="Save")
        assert (answer.status_code, "invalid-feedback" in answer.text) == (400, True), path


@pytest.mark.parametrize(
    ("table", "refused", "page"),
    [
        ("users", "first_name", "/user/edit/{}"),
        ("services", "name", "/service/create"),
        ("accounts", "name", "/account/create"),
    ],
)
def test_what_the_database_says_is_neither_shown_nor_logged(
    kassa: Kassa, administrator: Administrator, log_directory: Path, table: str, refused: str, page: str
):
    user, constraint = kassa.user(), f"{table}_refused_by_a_test"
    form = {"last_name": "", "role": "user", "user": user.name, "currency": "SEK", "price": "1", refused: "Refused"}
    with kassa.engine.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE FUNCTION {constraint}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE 'A row violates something.' USING ERRCODE = 'check_violation', CONSTRAINT = TG_NAME,"
            " DETAIL = 'Failing row contains (a hash).'; END $$"  # PostgreSQL itself writes out the whole row
        )
        connection.exec_driver_sql(
            f"CREATE TRIGGER {constraint} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW"
            f" WHEN (NEW.{refused} = 'Refused') EXECUTE FUNCTION {constraint}()"
        )
    try:
        answer = administrator.post(page.format(user.id), **form)
    finally:
        with kassa.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP FUNCTION {constraint} CASCADE")
    text, log = html.unescape(answer.text), (log_directory / "admin.log").read_text()
    for never in ("$argon2", "Failing row", "violates"):
        assert (never in text, never in log) == (False, False)
    assert "The database refused this change; nothing was changed." in text
    assert answer.status_code == 400
    [line] = [json.loads(line) for line in log.splitlines() if constraint in line]
    said = {"error": "IntegrityError", "pgcode": "23514", "constraint": constraint, "by": administrator.user.name}
    assert line | said == line
    assert column(kassa, f"SELECT id FROM {table} WHERE {refused} = 'Refused'") == []


# How it starts


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"SECRET_KEY": "short"}, "SECRET_KEY"),
        ({"LANES": "1000"}, "LANES=1000"),
        ({"DATABASE_URL": "x"}, "database_url"),
    ],
)
def test_a_wrong_environment_is_one_clear_line(kassa: Kassa, change: dict[str, str], words: str):
    environment = kassa.stack.environment | {"ADMIN_PORT": str(free_port(0))} | change
    command = ["/bin/sh", "-c", f"exec {procfile()['admin']}"]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 3
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("kassa admin: ")]
    assert words.lower() in line.lower()


# In a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1280,860"]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH")
needs_driver = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no Chromium with chromedriver on the PATH"
)


@needs_chromium
def test_a_browser_renders_the_login_page(kassa: Kassa, tmp_path: Path):
    picture = tmp_path / "login.png"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *FLAGS, profile, f"--screenshot={picture}", f"{kassa.admin}/login"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 8_000, "a blank page has some 4 kB"


class Browser:
    """A Chromium, driven by WebDriver calls over HTTP."""

    def __init__(self, port: int, profile: Path) -> None:
        self.http = httpx.Client(base_url=f"http://{LOOPBACK}:{port}", timeout=60)
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.path = "/session"
        self.path += "/" + self.call("", capabilities={"alwaysMatch": wanted})["sessionId"]
        self.call("/timeouts", implicit=10_000)  # milliseconds in which an element may yet appear

    def call(self, path: str, **body: object):
        """A WebDriver command."""
        answer = self.http.post(self.path + path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["value"]

    def open(self, address: str) -> None:
        """Go there."""
        self.call("/url", url=address)

    def element(self, selector: str) -> str:
        """Wait for an element. Returns the path of its commands."""
        return "/element/" + next(iter(self.call("/element", using="css selector", value=selector).values()))

    def type(self, selector: str, text: str) -> None:
        """Type into it."""
        self.call(self.element(selector) + "/value", text=text)

    def click(self, selector: str) -> None:
        """Click it."""
        self.call(self.element(selector) + "/click")

    def run(self, script: str):
        """What a script returns."""
        return self.call("/execute/sync", script=script, args=[])


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    port = free_port(0)
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not answers(port):
            assert time.monotonic() < deadline
        made = Browser(port, tmp_path / "profile")
        try:
            yield made
        finally:
            made.http.delete(made.path)
            made.http.close()
    finally:
        driver.terminate()
        driver.wait()


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://{LOOPBACK}:{port}/status").json()["value"]["ready"]
    except httpx.TransportError:
        return False


@needs_driver
def test_an_administrator_works_in_a_browser(kassa: Kassa, administrator: Administrator, browser: Browser):
    user = kassa.user(deposit=10050)
    browser.open(f"{kassa.admin}/operation/list")
    browser.type("[name=username]", administrator.user.name)
    browser.type("[name=password]", PASSWORD)
    colour = browser.run("return getComputedStyle(document.querySelector('[type=submit]')).color")
    assert colour != "rgb(0, 0, 0)", "the button has its style"
    browser.click("[type=submit]")
    browser.click(".card-link[href$='/operation/list']")
    browser.type("#search-input", user.name + "\ue007")  # Enter
    browser.click(f"a[href*='/user/details/{user.id}']")
    assert "100.50 RUB" in browser.run("return document.body.innerText")
    browser.open(f"{kassa.admin}/user/edit/{user.id}")
    browser.type("#first_name", "Ada")
    browser.click("[value=Save]")
    browser.element("#search-input")
    assert column(kassa, "SELECT first_name FROM users WHERE id = :id", id=user.id) == ["Ada"]
    assert "kassa_admin" not in browser.run("return document.cookie")
    hosts = browser.run("return performance.getEntriesByType('resource').map(entry => new URL(entry.name).host)")
    assert set(hosts) == {urlsplit(kassa.admin).netloc}
    assert browser.call("/se/log", type="browser") == [], "nothing is missing, nothing is refused"
