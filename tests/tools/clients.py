#!/usr/bin/env python3
"""The clients that people have, against the program: psql, psycopg, pgjdbc, ADBC, and its own; with and without users and TLS.

usage: clients.py --binary PATH --jdbc JAR [--data DIR] [--verbose]

Without --data a demo of twenty seconds makes the store. Two services answer from it: one open to everyone, one with users and
TLS. What DBeaver, Grafana, Metabase and psql ask by themselves stands in tests/sql/clients. Every check is named and printed;
exit code 1 where one fails.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import socket
import struct
import threading
import urllib.error
import urllib.request
from base64 import b64encode
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import adbc_driver_flightsql.dbapi as flight
import adbc_driver_manager
import jpype
import jpype.imports
import psycopg
from adbc_driver_flightsql import DatabaseOptions

from checks import Verdicts
from service import free_port, wait_until

QUESTIONS = Path(__file__).resolve().parents[1] / "sql" / "clients"
DEADLINE_S = 30
# Long enough that only somebody who ends it ends it.
ENDLESS = "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b WHERE a.value % 7 <> b.value % 11"
# What a certificate that signs itself must say for strict clients: that it signs nobody else.
CERTIFIED = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]


class Service:
    """`bellwether serve` on free ports."""

    def __init__(self, binary: str, data: Path, folder: Path, more: str = "", scheme: str = "http"):
        self.http, self.postgres, self.scheme = free_port(), free_port(), scheme
        self.log = folder / f"{scheme}.log"
        config = folder / f"{scheme}.toml"
        config.write_text(
            f'[store]\nurl = "{data}"\n[serve]\nlisten = "127.0.0.1:{self.http}"\npostgres = "127.0.0.1:{self.postgres}"\n{more}'
        )
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BELLWETHER_")}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([binary, "serve", "--config", str(config)], stdout=log, stderr=log, env=environment)
        self.base = f"{scheme}://127.0.0.1:{self.http}"
        self.conninfo = f"host=127.0.0.1 port={self.postgres} dbname=bellwether"

    def ask(self, method: str, path: str, body: str = "", headers: dict = {}, context=None):
        """Returns (status, body); (0, "") where nobody answers."""
        request = urllib.request.Request(self.base + path, body.encode() or None, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S, context=context) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


def psql(conninfo: str, *commands: str, password: str = ""):
    """Returns (output, what it complained of)."""
    arguments = [argument for command in commands for argument in ("-c", command)]
    environment = {**os.environ, "PGPASSWORD": password}
    done = subprocess.run(["psql", "-X", conninfo, *arguments], capture_output=True, text=True, env=environment, timeout=DEADLINE_S)
    return done.stdout, done.stderr


def refused(attempt, kind=Exception) -> str:
    """Returns what somebody was told who was refused; nothing where they were not."""
    try:
        attempt()
        return ""
    except kind as error:
        return str(error)


def asked_by(file: Path) -> list:
    """Returns the questions of a file, each with what its answer must hold."""
    # A command of psql ends with its line, a statement with a semicolon.
    ends = r"^((?:-- has: .*\n)?\\.*)$" if file.stem == "psql" else r"(?s)(.+?);$"
    found = []
    for question in re.findall(ends, re.sub(r"^-- (?!has: ).*\n", "", file.read_text(), flags=re.M), re.M):
        has = re.findall(r"^-- has: (.*)$", question, re.M)
        found.append((has[-1] if has else "", re.sub(r"^--.*\n", "", question.strip(), flags=re.M)))
    return found


def questions(service: Service, verdicts: Verdicts):
    """Asks what programs ask by themselves, one file of questions for each."""
    for file in sorted(QUESTIONS.glob("*.sql")):
        wrong, asked = [], asked_by(file)
        with psycopg.connect(service.conninfo, user="test", autocommit=True) as connection:
            for has, question in asked:
                if file.stem == "psql":
                    answer, complaint = psql(service.conninfo, question)
                    answer = answer if "ERROR" not in complaint else complaint
                else:
                    try:
                        cursor = connection.execute(question)
                        answer = str(cursor.fetchall()) if cursor.description else ""
                    except psycopg.Error as error:
                        answer = f"ERROR: {error}"
                if "ERROR" in answer or has not in answer:
                    wrong.append(f"{question}: no {has!r} in {answer[:300]}")
        verdicts.add(f"what {file.stem} asks by itself", len(asked) >= 5 and not wrong, "; ".join(wrong) or f"{len(asked)} questions")


def by_psql(service: Service, verdicts: Verdicts):
    answer, complaint = psql(service.conninfo, "SELECT 1 AS a; SELECT 2 AS b", "SELECT count(*) > 0 AS c FROM samples")
    verdicts.add("psql: several statements", re.findall(r"^ (\d|t)$", answer, re.M) == ["1", "2", "t"], repr(answer + complaint))
    answer, complaint = psql(service.conninfo, "SELECT ts, labels FROM metrics WHERE name = 'queue_depth' ORDER BY ts LIMIT 1")
    verdicts.add("psql: times and labels as text", re.search(r"2026-01-05 08:00:\d\d\S*\+00 \| \{\"", answer), answer + complaint)
    _, complaint = psql(service.conninfo, "SELECT * FROM sampels")
    verdicts.add("psql: an unknown table names the nearest", 'did you mean "samples"' in complaint, complaint)
    _, complaint = psql(service.conninfo, "DROP TABLE samples", "COPY samples TO '/tmp/x'", "CREATE TABLE x (a int)")
    verdicts.add("psql: what writes is refused", complaint.count("read-only") == 3, complaint)


def by_psycopg(service: Service, verdicts: Verdicts):
    _, text = service.ask("POST", "/sql?format=json", "SELECT count(*) AS n FROM metrics WHERE name = 'queue_depth'")
    number = json.loads(text)[0]["n"]
    with psycopg.connect(service.conninfo, user="test", autocommit=True) as connection:
        rows = {}
        for binary in (False, True):
            cursor = connection.cursor(binary=binary)
            rows[binary] = cursor.execute(
                "SELECT ts, name, labels, value, series_id, value > 1, ts::date AS day, [1, 2], ts - INTERVAL '1 hour' - ts AS ago, NULL::int,"
                " ts AT TIME ZONE 'Europe/Berlin' AS there"
                " FROM metrics WHERE name = %s ORDER BY ts, series_id, value", ("queue_depth",),
            ).fetchall()
        first = rows[False][0]
        kinds = [type(value) for value in first]
        verdicts.add("psycopg: binary says what text says", rows[False] == rows[True] and len(rows[True]) == number, f"{len(rows[True])} rows, first {first}")
        expected = [datetime, str, dict, float, int, bool, type(datetime.now().date()), list, timedelta, type(None), datetime]
        verdicts.add("psycopg: types of their own", kinds == expected and first[0].tzinfo is not None and first[-1] == first[0], str(kinds))
        parameters = [
            ("a list", "SELECT count(*) FROM metrics WHERE name = ANY(%s)", (["queue_depth", "nope"],), number),
            ("a list with a cast", "SELECT count(*) FROM metrics WHERE name = ANY(%s::text[])", (["queue_depth"],), number),
            ("a time", "SELECT count(*) FROM metrics WHERE name = 'queue_depth' AND ts > %s", (datetime(2026, 1, 5, tzinfo=timezone.utc),), number),
            ("an interval", "SELECT max(ts) + %s - max(ts) FROM samples", (timedelta(minutes=5),), timedelta(minutes=5)),
            ("a width", "SELECT min(time_bucket(%s, ts)) FROM samples", ("1 day",), datetime(2026, 1, 5, tzinfo=timezone.utc)),
            ("a number", "SELECT %s + 1", (3,), 4),
            ("a decimal", "SELECT count(*) FROM generate_series(1, 3) AS t(n) WHERE n = %s", (Decimal("1.5"),), 0),
            ("a limit", "SELECT count(*) FROM (SELECT * FROM samples LIMIT %s) s", (7,), 7),
            ("nothing", "SELECT coalesce(%s, 'b')", (None,), "b"),
            ("quotes", "SELECT %s", ("it's; DROP TABLE samples --",), "it's; DROP TABLE samples --"),
        ]
        wrong = []
        for name, sql, values, expected in parameters:
            for binary in (False, True):
                try:
                    got = connection.cursor(binary=binary).execute(sql, values).fetchone()[0]
                except psycopg.Error as error:
                    got = error
                if got != expected:
                    wrong.append(f"{name}{' in binary' * binary}: {got!r} instead of {expected!r}")
        verdicts.add("psycopg: parameters", not wrong, "; ".join(wrong) or f"{len(parameters)} kinds, text and binary")
        total = connection.execute("SELECT count(*) FROM samples").fetchone()[0]
        streamed = sum(1 for _ in connection.cursor().stream("SELECT * FROM samples"))
        verdicts.add("psycopg: rows as they come", streamed == total, f"{streamed} of {total}")
        with psycopg.connect(service.conninfo, user="test", autocommit=True) as other, other.pipeline():
            cursors = [other.execute("SELECT %s * 2", (number,)) for number in range(50)]
            doubled = [cursor.fetchone()[0] for cursor in cursors]
        verdicts.add("psycopg: a pipeline", doubled == [2 * number for number in range(50)], str(doubled[:5]))
        with connection.transaction():
            in_transaction = connection.execute("SELECT 1").fetchone()
        verdicts.add("psycopg: a transaction", in_transaction == (1,), str(in_transaction))
        said = refused(lambda: connection.execute("SELECT value / 0 FROM generate_series(1, 3)"), psycopg.errors.DataException)
        verdicts.add("psycopg: an error of the data", "ivide by zero" in said and connection.execute("SELECT 1").fetchone(), said)
        said = refused(lambda: connection.execute("SET statement_timeout = '200ms'") and connection.execute(ENDLESS), psycopg.errors.QueryCanceled)
        verdicts.add("psycopg: a timeout of the session", "200ms" in said, said)


def running(service: Service, headers: dict = {}, context=None) -> list:
    """Returns the queries that run, but for this one."""
    _, text = service.ask("POST", "/sql?format=json", "SELECT * FROM system.queries WHERE sql NOT LIKE '%system.queries%'", headers, context)
    return json.loads(text)


def ending(service: Service, verdicts: Verdicts):
    """Queries that would never end: cancelled, killed, or left by who asked."""
    connection = psycopg.connect(service.conninfo, user="test", autocommit=True)
    told = []
    asking = threading.Thread(target=lambda: told.append(refused(lambda: connection.execute(ENDLESS), psycopg.errors.QueryCanceled)))
    asking.start()
    seen = wait_until(lambda: running(service), DEADLINE_S)
    connection.cancel()
    asking.join(DEADLINE_S)
    verdicts.add("cancel ends a query of psycopg", seen and told and told[0], str(told))
    verdicts.add("the connection goes on after it", connection.execute("SELECT 1").fetchone() == (1,), "SELECT 1")
    connection.close()
    leaver = subprocess.Popen(["psql", "-X", service.conninfo, "-c", ENDLESS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen = wait_until(lambda: running(service), DEADLINE_S)
    leaver.kill()
    leaver.wait()
    verdicts.add("a client that is killed leaves no query behind", seen and wait_until(lambda: not running(service), DEADLINE_S), str(running(service)))
    for name, command in [("HTTP", ["curl", "-s", "-d", ENDLESS, f"{service.base}/sql"]), ("psql", ["psql", "-X", service.conninfo, "-c", ENDLESS])]:
        victim = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_until(lambda: running(service), DEADLINE_S)
        killed = [service.ask("DELETE", f"/queries/{query['id']}")[0] for query in running(service)]
        output, _ = victim.communicate(timeout=DEADLINE_S)
        verdicts.add(f"a query over {name} is killed by its id", killed == [204] and "ended by somebody" in output, f"{killed} {output.strip()}")
    verdicts.add("who kills what does not run is told so", service.ask("DELETE", "/queries/999999")[0] == 404, "404")


def by_jdbc(service: Service, verdicts: Verdicts):
    from java.sql import DriverManager, SQLException, Timestamp

    connection = DriverManager.getConnection(f"jdbc:postgresql://127.0.0.1:{service.postgres}/bellwether", "test", "")
    about = connection.getMetaData()

    def listed(rows, *columns):
        found = []
        while rows.next():
            found.append(tuple(str(rows.getString(column)) for column in columns))
        return found

    tables = listed(about.getTables(None, "public", "%", None), "TABLE_NAME", "TABLE_TYPE")
    verdicts.add("pgjdbc: tables", ("samples", "TABLE") in tables and ("metrics", "VIEW") in tables, f"{len(tables)}: {tables[:3]}")
    columns = listed(about.getColumns(None, "public", "samples", "%"), "COLUMN_NAME", "TYPE_NAME")
    verdicts.add("pgjdbc: columns", columns == [("series_id", "int8"), ("ts", "timestamptz"), ("value", "float8")], str(columns))
    schemas = listed(about.getSchemas(), "TABLE_SCHEM")
    verdicts.add("pgjdbc: schemas", {("public",), ("metric",), ("system",)} <= set(schemas), str(schemas))
    # From the fifth time on it is prepared at the server, and answers come in binary.
    answers = []
    statement = connection.prepareStatement("SELECT ts, value, labels FROM metrics WHERE name = ? AND value >= ? AND ts > ? ORDER BY ts, series_id LIMIT 3")
    for _ in range(8):
        statement.setString(1, "queue_depth")
        statement.setDouble(2, 0.0)
        statement.setTimestamp(3, Timestamp(0))
        rows, answer = statement.executeQuery(), []
        while rows.next():
            answer.append((rows.getTimestamp(1).getTime(), rows.getDouble(2), str(rows.getString(3))))
        answers.append(answer)
    verdicts.add("pgjdbc: a prepared statement, time and again", len(answers[0]) == 3 and all(answer == answers[0] for answer in answers), str(answers[0][:1]))
    connection.setAutoCommit(False)
    statement = connection.createStatement()
    statement.setFetchSize(1000)
    rows, number = statement.executeQuery("SELECT ts, value FROM samples"), 0
    while rows.next():
        number += 1
    count = statement.executeQuery("SELECT count(*) FROM samples")
    count.next()
    verdicts.add("pgjdbc: rows by the thousand", number == count.getLong(1) > 1000, f"{number} rows")
    connection.commit()
    statement.setFetchSize(0)
    statement.setMaxRows(2147483647)
    rows, all_rows = statement.executeQuery("SELECT ts, value FROM samples"), 0
    while rows.next():
        all_rows += 1
    statement.setMaxRows(3)
    rows, few = statement.executeQuery("SELECT ts, value FROM samples"), 0
    while rows.next():
        few += 1
    verdicts.add("pgjdbc: as many rows as it says", (all_rows, few) == (number, 3), f"{all_rows}, {few}")
    said = refused(lambda: statement.executeQuery("SELECT nope FROM samples"), SQLException)
    verdicts.add("pgjdbc: an error", "nope" in said, said)
    connection.rollback()
    connection.close()


def by_adbc(service: Service, verdicts: Verdicts):
    with flight.connect(f"grpc://127.0.0.1:{service.http}", autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM samples")
        table = cursor.fetch_arrow_table()
        cursor.execute("SELECT count(*) FROM samples")
        total = cursor.fetchone()[0]
        types = [str(field.type) for field in table.schema]
        verdicts.add("ADBC: a table of Arrow", table.num_rows == total and types == ["int64", "timestamp[us, tz=UTC]", "double"], f"{table.num_rows} rows of {types}")
        cursor.execute("SELECT count(*) > 0 FROM metrics WHERE name = $1 AND value >= $2", parameters=("queue_depth", 0.0))
        verdicts.add("ADBC: parameters", cursor.fetchone() == (True,), "two")
        objects = connection.adbc_get_objects(depth="all", db_schema_filter="public").read_all().to_pylist()
        tables = {t["table_name"]: t for c in objects for s in c["catalog_db_schemas"] for t in s["db_schema_tables"]}
        columns = [column["column_name"] for column in tables["samples"]["table_columns"]]
        verdicts.add("ADBC: tables and columns", columns == ["series_id", "ts", "value"] and "metrics" in tables, f"{len(tables)} tables")
        verdicts.add("ADBC: a table's schema", connection.adbc_get_table_schema("samples", db_schema_filter="public").names == columns, str(columns))
        info = connection.adbc_get_info()
        verdicts.add("ADBC: who it is", info["vendor_name"] == "Bellwether", str(info["vendor_name"]))
        for sql, words in [("SELECT * FROM sampels", 'did you mean "samples"'), ("DROP TABLE samples", "read-only")]:
            said = refused(lambda: cursor.execute(sql), adbc_driver_manager.Error)
            verdicts.add(f"ADBC: {sql}", words in said, said)


def strangers(service: Service, name: str, verdicts: Verdicts):
    """What comes before anybody is let in: it must not cost much, nor last."""

    def startup() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", service.postgres), timeout=DEADLINE_S)
        words = f"user\0{name}\0\0".encode()
        connection.sendall(struct.pack("!ii", len(words) + 8, 196608) + words)
        connection.recv(1000)
        return connection

    def ends(connection: socket.socket) -> bool:
        try:
            while connection.recv(1000):
                pass
            return True
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    connection = startup()
    connection.sendall(b"Q" + struct.pack("!i", 900 << 20))
    verdicts.add("a stranger who announces a message of 900 MB is left", ends(connection), "at its head")
    connection = startup()
    first = b"SCRAM-SHA-256\0" + struct.pack("!i", 16) + b"n,,n=ada,r=abcde"
    connection.sendall(b"p" + struct.pack("!i", 4 + len(first)) + first)
    connection.recv(1000)
    connection.sendall(b"p" + struct.pack("!i", 10) + b"c=biws")
    verdicts.add("a stranger who proves nothing is left", ends(connection), "after the refusal")


def user(binary: str, users: Path, *arguments: str) -> dict:
    """Adds somebody to the file of users, and returns their secrets."""
    made = subprocess.run([binary, "user", *arguments], capture_output=True, text=True, check=True)
    with open(users, "a") as file:
        file.write(made.stdout)
    return dict(re.findall(r"^(\w+): (\S+)$", made.stderr, re.M))


def with_users(binary: str, data: Path, folder: Path, verdicts: Verdicts):
    import ssl

    certificate, key, users = folder / "cert.pem", folder / "key.pem", folder / "users.toml"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(certificate),
         *CERTIFIED], check=True, capture_output=True,
    )
    admin = user(binary, users, "ada", "--admin")
    reader = user(binary, users, "grafana", "--table", "metrics", "--table", "metric.*", "--table", "system.queries")
    users.write_text(users.read_text().replace("tables = [\"metrics\"", "rows_max = 100\nconcurrency_max = 1\ntables = [\"metrics\"", 1))
    secured = f'users = "{users}"\ntls_certificate = "{certificate}"\ntls_key = "{key}"\n'
    service = Service(binary, data, folder, secured, "https")
    context = ssl.create_default_context(cafile=certificate)
    basic = lambda name, password: {"Authorization": "Basic " + b64encode(f"{name}:{password}".encode()).decode()}
    bearer = lambda token: {"Authorization": f"Bearer {token}"}
    ask = lambda sql, headers: service.ask("POST", "/sql?format=csv", sql, headers, context)
    if not wait_until(lambda: service.ask("GET", "/healthz", context=context)[0] == 200, DEADLINE_S):
        verdicts.add("the service with users starts", False, service.log.read_text())
        return
    verified = f"{service.conninfo} sslmode=verify-full sslrootcert={certificate}"

    answers = {
        "nobody": ask("SELECT 1", {})[0],
        "a name and password": ask("SELECT 1", basic("ada", admin["password"]))[0],
        "a token": ask("SELECT 1", bearer(admin["token"]))[0],
        "a wrong password": ask("SELECT 1", basic("ada", "wrong"))[0],
        "a wrong token": ask("SELECT 1", bearer("wrong"))[0],
        "a password's digest": ask("SELECT 1", basic("ada", re.search(r'password = "(.*)"', users.read_text())[1]))[0],
        "nobody, for the page of metrics": service.ask("GET", "/metrics", context=context)[0],
        "a token, for the page of metrics": service.ask("GET", "/metrics", headers=bearer(reader["token"]), context=context)[0],
    }
    verdicts.add("HTTP: who may come in", list(answers.values()) == [401, 200, 200, 401, 401, 401, 401, 200], str(answers))
    answer, complaint = psql(f"{verified} user=ada", "SELECT count(*) > 0 FROM samples", r"\conninfo", password=admin["password"])
    verdicts.add("psql: SCRAM over TLS", " t\n" in answer and "TLSv1.3" in answer, answer + complaint)
    for name, password in [("ada", "wrong"), ("nobody", "wrong"), ("ada", ""), ("nobody", "")]:
        answer, complaint = psql(f"{verified} user={name}", "SELECT 1", password=password)
        is_refused = "authentication failed" in complaint or not password and "no password supplied" in complaint
        verdicts.add(f"psql: {name} with {'a wrong' if password else 'no'} password", is_refused and "1 row" not in answer, complaint.strip())
    said = refused(lambda: psycopg.connect(f"{service.conninfo} sslmode=disable user=ada password=wrong"))
    verdicts.add("psycopg: plain text from this machine still needs the password", "authentication failed" in said, said)

    with psycopg.connect(f"{verified} user=grafana password={reader['password']}", autocommit=True) as connection:
        seen = [row[0] for row in connection.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")]
        verdicts.add("a user sees what they may read", seen == ["metrics"], str(seen))
        count = connection.execute("SELECT count(*) > 0 FROM metrics").fetchone()[0]
        verdicts.add("a view reads what its reader may not", count, "metrics stands on samples and series")
        said = refused(lambda: connection.execute("SELECT nope FROM metrics"))
        verdicts.add("an error over a view is about the view", "nope" in said and "samples" not in said, said)
        for table in ["samples", "series", "system.files", "alerts", "bellwether.public.samples"]:
            said = refused(lambda: connection.execute(f"SELECT * FROM {table}"), psycopg.errors.InsufficientPrivilege)
            verdicts.add(f"a user may not read {table}", "may not read" in said, said)
        said = refused(lambda: connection.execute("SELECT * FROM metrics"))
        verdicts.add("a user's own limit of rows", "more than 100 rows" in said, said)
        relations = connection.execute("SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE nspname IN ('public', 'system')")
        relations = sorted(row[0] for row in relations)
        verdicts.add("the system catalog shows no more", relations == ["metrics", "queries"], str(relations))
    status, text = ask("SELECT * FROM samples", bearer(reader["token"]))
    verdicts.add("HTTP: a table that is not theirs", status == 403, f"{status} {text}")

    trusting = {DatabaseOptions.TLS_ROOT_CERTS.value: certificate.read_text()}
    address = f"grpc+tls://127.0.0.1:{service.http}"
    with flight.connect(address, {**trusting, "username": "ada", "password": admin["password"]}, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) > 0 FROM samples")
        verdicts.add("ADBC: name and password over TLS", cursor.fetchone() == (True,), "samples")
    with flight.connect(address, {**trusting, DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {reader['token']}"}, autocommit=True) as connection, connection.cursor() as cursor:
        said = refused(lambda: cursor.execute("SELECT * FROM samples"), adbc_driver_manager.Error)
        verdicts.add("ADBC: a token, and a table that is not theirs", "may not read" in said, said)
    said = refused(lambda: flight.connect(address, {**trusting, "username": "ada", "password": "wrong"}), adbc_driver_manager.Error)
    verdicts.add("ADBC: a wrong password", "wrong" in said and "UNAUTHENTICATED" in said.upper(), said)

    # Of two of one user the second waits; others do not wait for it.
    busy = threading.Thread(target=lambda: refused(lambda: ask(ENDLESS, bearer(reader["token"]))))
    busy.start()
    seen = wait_until(lambda: running(service, bearer(admin["token"]), context), DEADLINE_S)
    with psycopg.connect(f"{verified} user=grafana password={reader['password']}", autocommit=True) as connection:
        connection.execute("SET statement_timeout = '300ms'")
        said = refused(lambda: connection.execute("SELECT 1"))
        verdicts.add("a user's own limit of queries at once", seen and "1 queries were already running" in said, said)
    query = running(service, bearer(admin["token"]), context)[0]
    killed = service.ask("DELETE", f"/queries/{query['id']}", headers=bearer(admin["token"]), context=context)[0]
    busy.join(DEADLINE_S)
    verdicts.add("an admin ends a user's query", killed == 204 and query["user"] == "grafana", f"{killed} {query}")
    busy = threading.Thread(target=lambda: refused(lambda: ask(ENDLESS, bearer(admin["token"]))))
    busy.start()
    wait_until(lambda: running(service, bearer(admin["token"]), context), DEADLINE_S)
    query, theirs = running(service, bearer(admin["token"]), context)[0], running(service, bearer(reader["token"]), context)
    killed = service.ask("DELETE", f"/queries/{query['id']}", headers=bearer(reader["token"]), context=context)[0]
    verdicts.add("nobody else sees or ends an admin's query", killed == 404 and not theirs, f"{killed} {theirs}")
    service.ask("DELETE", f"/queries/{query['id']}", headers=bearer(admin["token"]), context=context)
    busy.join(DEADLINE_S)

    url = f"https://ada:{admin['password']}@localhost:{service.http}"
    trusting = {**os.environ, "SSL_CERT_FILE": str(certificate)}
    own = lambda url, environment: subprocess.run([binary, "sql", "--url", url, "-f", "csv", "SELECT 41 + 1 AS n"], capture_output=True, text=True, env=environment)
    done = own(url, trusting)
    verdicts.add("bellwether sql: name and password over TLS", done.stdout == "n\n42\n", done.stdout + done.stderr)
    done = own(f"https://localhost:{service.http}", {**trusting, "BELLWETHER_TOKEN": admin["token"]})
    verdicts.add("bellwether sql: a token", done.stdout == "n\n42\n", done.stdout + done.stderr)
    done = own(f"https://localhost:{service.http}", trusting)
    verdicts.add("bellwether sql: without either", done.returncode == 1 and "BELLWETHER_TOKEN" in done.stderr, done.stderr.strip())
    done = own(url, os.environ)
    verdicts.add("bellwether sql: a certificate that nobody vouches for", done.returncode == 1 and "certificate" in done.stderr, done.stderr.strip())

    strangers(service, "ada", verdicts)
    late = user(binary, users, "late")
    came = wait_until(lambda: ask("SELECT 1", bearer(late["token"]))[0] == 200, DEADLINE_S)
    verdicts.add("somebody who is added to the file may come in", came, "without a restart")
    with psycopg.connect(f"{verified} user=late password={late['password']}", autocommit=True) as connection:
        pass_on = {"Authorization": f"Bearer {late['token']}"}
        before, whole = connection.execute("SELECT 1").fetchone(), users.read_text()
        users.write_text(whole.split("[[users]]\nname = \"late\"")[0])
        gone = wait_until(lambda: ask("SELECT 1", pass_on)[0] == 401, DEADLINE_S)
        said = refused(lambda: connection.execute("SELECT 1"))
        verdicts.add("who is taken out of the file may ask no more, on open connections too", before and gone and "may not ask any more" in said, said)
        users.write_text(whole)
        wait_until(lambda: ask("SELECT 1", pass_on)[0] == 200, DEADLINE_S)
    users.write_text(users.read_text() + "\n[[users]]\nname = 'broken'\n")
    noticed = wait_until(lambda: "known as they were before" in service.log.read_text(), DEADLINE_S)
    verdicts.add("a file that is broken changes nothing", noticed and ask("SELECT 1", bearer(late["token"]))[0] == 200, "said in the log")
    old = certificate.read_text()
    subprocess.run(["openssl", "req", "-x509", "-key", str(key), "-days", "3", "-out", str(certificate), *CERTIFIED], check=True, capture_output=True)
    shown = lambda: ssl.get_server_certificate(("127.0.0.1", service.http)).strip() == certificate.read_text().strip()
    verdicts.add("a certificate that was renewed is shown", old != certificate.read_text() and wait_until(shown, DEADLINE_S), "without a restart")
    log = service.log.read_text()
    audited = re.findall(r"audit: query ended .*", log)
    named = [line for line in audited if "grafana" in line and "forbidden" in line and "FROM samples" in line]
    verdicts.add("the log says who asked what", len(audited) > 20 and named, f"{len(audited)} queries, such as {named[:1]}")
    secrets = [secret for person in (admin, reader, late) for secret in person.values() if secret in log]
    verdicts.add("the log holds no secret", not secrets, f"{len(secrets)} found")
    verdicts.add("the service with users ends cleanly", service.stop() == 0, "exit code 0")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--jdbc", required=True, help="the jar of pgjdbc")
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    verdicts = Verdicts()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = options.data or folder / "store"
        if options.data is None:
            subprocess.run(
                [options.binary, "demo", "--seconds", "20", "--data", str(data), "--listen", "127.0.0.1:0", "--postgres", "127.0.0.1:0"],
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        service = Service(options.binary, data, folder)
        if not wait_until(lambda: service.ask("GET", "/healthz")[0] == 200, DEADLINE_S):
            print(service.log.read_text())
            return 1
        jpype.startJVM(classpath=[options.jdbc])
        for scene in (questions, by_psql, by_psycopg, ending, by_jdbc, by_adbc):
            scene(service, verdicts)
        verdicts.add("the open service ends cleanly", service.stop() == 0, "exit code 0")
        with_users(options.binary, data, folder, verdicts)
    print(f"clients: {len(verdicts.rows) - verdicts.failed()} of {len(verdicts.rows)} checks passed")
    return 1 if verdicts.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
