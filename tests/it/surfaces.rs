//! The ways to ask SQL, each with a client of its own for sqllogictest: the engine, HTTP, Postgres' protocol, Flight SQL.

use std::net::SocketAddr;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::util::display::{ArrayFormatter, DurationFormat, FormatOptions};
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use async_trait::async_trait;
use bellwether::query::{Engine, QueryError};
use bellwether::serve::accounts::Accounts;
use bellwether::serve::{Api, Bound, Readiness, Settings};
use bellwether::telemetry::Telemetry;
use futures::TryStreamExt as _;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_postgres::types::Type;
use tokio_postgres::{NoTls, SimpleQueryMessage};
use tonic::transport::{Channel, Endpoint};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    Engine,
    Http,
    Postgres,
    Flight,
}

impl Surface {
    pub const ALL: [Surface; 4] = [Surface::Engine, Surface::Http, Surface::Postgres, Surface::Flight];
}

/// An engine that is served on every surface, as long as the test runs.
#[derive(Clone)]
pub struct Server {
    engine: Arc<Engine>,
    http: SocketAddr,
    postgres: SocketAddr,
}

impl Server {
    pub async fn start(engine: Arc<Engine>) -> Server {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let bound = Bound::bind(&Settings { listen: any, postgres: Some(any), tls: None }).await.unwrap();
        let server = Server { engine: engine.clone(), http: bound.address(), postgres: bound.postgres().unwrap() };
        let api = Api {
            accounts: Accounts::everyone(engine.everyone()).unwrap(),
            query: engine,
            telemetry: Telemetry::default(),
            ready: Arc::new(|| Readiness { ready: true, reasons: Vec::new() }),
            views: Arc::new(|| serde_json::json!([])),
            reload: None,
        };
        tokio::spawn(bound.serve(api, std::future::pending()));
        server
    }

    pub async fn client(&self, surface: Surface) -> Client {
        match surface {
            Surface::Engine => Client::Engine(self.engine.clone()),
            Surface::Http => Client::Http(self.http),
            Surface::Postgres => {
                let config =
                    format!("host={} port={} user=test dbname=bellwether", self.postgres.ip(), self.postgres.port());
                let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
                tokio::spawn(connection);
                Client::Postgres(client)
            }
            Surface::Flight => {
                let channel = Endpoint::from_shared(format!("http://{}", self.http)).unwrap().connect().await.unwrap();
                Client::Flight(Box::new(FlightSqlServiceClient::new(channel)))
            }
        }
    }
}

pub enum Client {
    Engine(Arc<Engine>),
    Http(SocketAddr),
    Postgres(tokio_postgres::Client),
    Flight(Box<FlightSqlServiceClient<Channel>>),
}

/// An error as whoever sent the statement reads it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

impl From<QueryError> for Refused {
    fn from(error: QueryError) -> Self {
        Refused(error.message())
    }
}

impl From<tokio_postgres::Error> for Refused {
    fn from(error: tokio_postgres::Error) -> Self {
        Refused(error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned()))
    }
}

type Answered = Result<DBOutput<DefaultColumnType>, Refused>;

#[async_trait]
impl AsyncDB for Client {
    type Error = Refused;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Answered {
        match self {
            Client::Engine(engine) => {
                let answer = engine.run(sql).await?;
                Ok(rows(&answer.schema.clone(), &answer.collect().await?))
            }
            Client::Http(address) => over_http(*address, sql).await,
            Client::Postgres(client) => over_postgres(client, sql).await,
            Client::Flight(client) => over_flight(client, sql).await,
        }
    }

    async fn shutdown(&mut self) {}

    /// What `skipif` and `onlyif` know it by.
    fn engine_name(&self) -> &str {
        match self {
            Client::Engine(_) => "engine",
            Client::Http(_) => "http",
            Client::Postgres(_) => "postgres",
            Client::Flight(_) => "flight",
        }
    }
}

async fn over_http(address: SocketAddr, sql: &str) -> Answered {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("POST /sql?format=arrow HTTP/1.0\r\ncontent-length: {}\r\n\r\n{sql}", sql.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    let body = answer.split_off(head);
    if !answer.starts_with(b"HTTP/1.0 200") {
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap();
        return Err(Refused(said["error"]["message"].as_str().unwrap().to_owned()));
    }
    let reader = StreamReader::try_new(body.as_slice(), None).unwrap();
    let schema = reader.schema();
    Ok(rows(&schema, &reader.collect::<Result<Vec<_>, _>>().unwrap()))
}

async fn over_flight(client: &mut FlightSqlServiceClient<Channel>, sql: &str) -> Answered {
    let refused = |error: FlightError| match error {
        FlightError::Tonic(status) => Refused(status.message().to_owned()),
        other => Refused(other.to_string()),
    };
    let info = client.execute(sql.to_owned(), None).await.map_err(refused)?;
    let ticket = info.endpoint.into_iter().next().unwrap().ticket.unwrap();
    let mut stream = client.do_get(ticket).await.map_err(refused)?;
    let mut batches = Vec::new();
    while let Some(batch) = stream.try_next().await.map_err(refused)? {
        batches.push(batch);
    }
    let schema = stream.schema().unwrap().clone();
    Ok(rows(&schema, &batches))
}

/// Rows come as text here, written as Postgres writes them: what they say must be the same.
async fn over_postgres(client: &mut tokio_postgres::Client, sql: &str) -> Answered {
    let described = client.prepare(sql).await?;
    let types: Vec<Type> = described.columns().iter().map(|column| column.type_().clone()).collect();
    let mut rows = Vec::new();
    for message in client.simple_query(sql).await? {
        if let SimpleQueryMessage::Row(row) = message {
            rows.push(types.iter().enumerate().map(|(at, kind)| as_arrow(row.get(at), kind)).collect());
        }
    }
    let columns = types.iter().map(|kind| match *kind {
        Type::INT2 | Type::INT4 | Type::INT8 => DefaultColumnType::Integer,
        Type::FLOAT4 | Type::FLOAT8 | Type::NUMERIC => DefaultColumnType::FloatingPoint,
        _ => DefaultColumnType::Text,
    });
    Ok(DBOutput::Rows { types: columns.collect(), rows })
}

/// Writes a value as Arrow does.
fn as_arrow(value: Option<&str>, kind: &Type) -> String {
    let Some(value) = value else { return "NULL".to_owned() };
    match *kind {
        _ if value.is_empty() => "(empty)".to_owned(),
        Type::BOOL => (value == "t").to_string(),
        Type::FLOAT4 | Type::FLOAT8 => number(value),
        Type::TIMESTAMP | Type::TIMESTAMPTZ => {
            format!("{}Z", value.trim_end_matches("+00").replacen(' ', "T", 1))
        }
        Type::INTERVAL => duration(value),
        Type::BYTEA => value.trim_start_matches("\\x").to_owned(),
        Type::JSON => {
            let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(value).unwrap();
            let entries = object.iter().map(|(key, value)| format!("{key}: {}", value.as_str().unwrap_or_default()));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Type::FLOAT8_ARRAY => list(value, number),
        Type::TEXT_ARRAY | Type::INT8_ARRAY | Type::INT4_ARRAY => {
            list(value, |item| item.trim_matches('"').replace("\\\"", "\""))
        }
        _ => value.to_owned(),
    }
}

fn number(text: &str) -> String {
    match text {
        "NaN" => "NaN".to_owned(),
        "Infinity" => "inf".to_owned(),
        "-Infinity" => "-inf".to_owned(),
        number => format!("{:?}", number.parse::<f64>().unwrap()),
    }
}

/// Reads hours, minutes and seconds, as `-01:00:00.5`.
fn duration(text: &str) -> String {
    let (sign, text) = text.strip_prefix('-').map_or(("", text), |text| ("-", text));
    let parts: Vec<f64> = text.split(':').map(|part| part.parse().unwrap()).collect();
    let [hours, minutes, seconds] = parts[..] else { panic!("{text}") };
    format!("{sign}0 days {hours} hours {minutes} mins {seconds:.6} secs")
}

fn list(text: &str, item: impl Fn(&str) -> String) -> String {
    let items = text.trim_matches(['{', '}']).split(',').filter(|one| !one.is_empty());
    format!("[{}]", items.map(item).collect::<Vec<_>>().join(", "))
}

fn rows(schema: &SchemaRef, batches: &[RecordBatch]) -> DBOutput<DefaultColumnType> {
    let types = schema.fields().iter().map(|field| column_type(field.data_type())).collect();
    DBOutput::Rows { types, rows: batches.iter().flat_map(cells).collect() }
}

fn column_type(of: &DataType) -> DefaultColumnType {
    match of {
        of if of.is_integer() => DefaultColumnType::Integer,
        of if of.is_numeric() => DefaultColumnType::FloatingPoint,
        _ => DefaultColumnType::Text,
    }
}

fn cells(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = FormatOptions::default()
        .with_null("NULL")
        .with_timestamp_format(Some("%Y-%m-%dT%H:%M:%S%.fZ"))
        .with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.fZ"))
        .with_duration_format(DurationFormat::Pretty);
    let columns: Vec<_> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap()).collect();
    let cell = |column: &ArrayFormatter<'_>, row: usize| match column.value(row).to_string() {
        empty if empty.is_empty() => "(empty)".to_owned(),
        text => text,
    };
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| cell(column, row)).collect()).collect()
}
