//! SQL as Arrow: Flight SQL, for ADBC and for JDBC's Arrow driver, on the port of HTTP. Keeps nothing between calls: a handle
//! is the statement itself, with its parameters.

use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arrow::array::{Array as _, AsArray as _, RecordBatch, StringArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::root_as_message;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::server::{FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables,
    CommandPreparedStatementQuery, CommandStatementQuery, DoPutPreparedStatementResult, ProstMessageExt, SqlInfo,
    TicketStatementQuery,
};
use arrow_flight::{
    Action, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, IpcMessage, SchemaAsIpc,
    Ticket,
};
use async_trait::async_trait;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use prost::Message as _;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::accounts::Accounts;
use super::connection::Activity;
use crate::query::error::Class;
use crate::query::{Asker, Described, Engine, QueryError, Question, Surface, User, parameters};

/// The path under which gRPC calls the service.
pub(super) const PATH: &str = "/arrow.flight.protocol.FlightService/";

/// Most bytes of a statement's parameters, and how long they may take to arrive.
const PARAMETERS_BYTES_MAX: usize = 4 << 20;
const PARAMETERS_TIME_MAX: Duration = Duration::from_secs(10);

type Answered<T> = Result<Response<T>, Status>;
type Rows = <Flight as FlightService>::DoGetStream;

/// Answers calls of Flight SQL.
pub(super) struct Flight {
    query: Arc<Engine>,
    accounts: Accounts,
}

impl Flight {
    /// Returns the service as gRPC calls it.
    pub fn service(query: Arc<Engine>, accounts: Accounts) -> FlightServiceServer<Flight> {
        FlightServiceServer::new(Flight { query, accounts })
    }

    async fn describe<T>(&self, request: &Request<T>, sql: &str) -> Result<Described, Status> {
        self.query.describe(&asker(request)?, sql.into()).await.map_err(refused)
    }

    /// Returns the statement of a handle. Only what was made here is read: what a client makes up may claim to be of any size.
    fn prepared(&self, handle: &[u8]) -> Result<Prepared, Status> {
        let unknown = "the handle is none of a statement that was prepared here since the service was started";
        Prepared::of(self.accounts.unseal(handle).ok_or_else(|| Status::invalid_argument(unknown))?)
    }

    fn handle(&self, prepared: &Prepared) -> Result<Bytes, Status> {
        Ok(self.accounts.seal(prepared.handle().map_err(failed)?).into())
    }

    /// Runs a statement and sends its rows as they come.
    async fn run<T>(&self, request: &Request<T>, prepared: Prepared) -> Answered<Rows> {
        let asker = asker(request)?;
        let parameters = prepared.parameters.as_ref().map(parameters::of_row).transpose().map_err(refused)?;
        let question = Question { sql: prepared.sql, parameters, ..Question::default() };
        let answer = self.query.ask(&asker, question).await.map_err(refused)?;
        let activity =
            request.extensions().get::<ConnectInfo<Activity>>().map(|ConnectInfo(activity)| activity.answering());
        let batches = answer.stream.map_err(|error| FlightError::Tonic(Box::new(refused(error.into()))));
        let rows = FlightDataEncoderBuilder::new().with_schema(answer.schema).build(batches);
        let rows = rows.map(move |data| {
            // As long as rows go out it is not the client's turn.
            let _ = &activity;
            data.map_err(Status::from)
        });
        Ok(Response::new(Box::pin(rows)))
    }

    /// Returns the columns of what a statement lists, as text.
    async fn list<T>(&self, request: &Request<T>, sql: &str) -> Result<Vec<StringArray>, Status> {
        let answer = self.query.ask(&asker(request)?, sql.into()).await.map_err(refused)?;
        let schema = answer.schema.clone();
        let batches = answer.collect().await.map_err(refused)?;
        let rows = concat_batches(&schema, &batches).map_err(failed)?;
        let text = rows.columns().iter().map(|column| Ok(cast(column, &DataType::Utf8)?.as_string().clone()));
        text.collect::<Result<_, ArrowError>>().map_err(failed)
    }
}

/// A statement with the row of its parameters, where it has any: both travel in its handle.
#[derive(Debug, Default, PartialEq)]
struct Prepared {
    sql: String,
    parameters: Option<RecordBatch>,
}

#[derive(prost::Message)]
struct Handle {
    #[prost(string, tag = "1")]
    sql: String,
    /// Arrow IPC stream; empty for none.
    #[prost(bytes = "bytes", tag = "2")]
    parameters: Bytes,
}

impl Prepared {
    fn of(handle: &[u8]) -> Result<Prepared, Status> {
        let unknown = |_| Status::internal("a handle of ours says what it was made of");
        let Handle { sql, parameters } = Handle::decode(handle).map_err(unknown)?;
        let parameters = match parameters.is_empty() {
            true => None,
            false => StreamReader::try_new(parameters.as_ref(), None)
                .and_then(|mut rows| rows.next().transpose())
                .map_err(failed)?,
        };
        Ok(Prepared { sql, parameters })
    }

    fn handle(&self) -> Result<Vec<u8>, ArrowError> {
        let mut parameters = Vec::new();
        if let Some(row) = &self.parameters {
            let mut writer = StreamWriter::try_new(&mut parameters, row.schema_ref())?;
            writer.write(row)?;
            writer.finish()?;
        }
        Ok(Handle { sql: self.sql.clone(), parameters: parameters.into() }.encode_to_vec())
    }
}

#[async_trait]
impl FlightSqlService for Flight {
    type FlightService = Flight;

    /// Gives whoever came in with a password a token to come in with from now on.
    async fn do_handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Answered<Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>> {
        let user = asker(&request)?.user;
        let pass = self.accounts.pass(&user).ok_or_else(|| Status::unauthenticated("no such user any more"))?;
        let said = HandshakeResponse { protocol_version: 0, payload: pass.clone().into() };
        let said: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(stream::iter([Ok(said)]));
        let mut response = Response::new(said);
        let bearer = format!("Bearer {pass}").parse().map_err(|_| Status::internal("a token is text"))?;
        response.metadata_mut().insert("authorization", bearer);
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        let schema = self.describe(&request, &query.query).await?.schema;
        let prepared = Prepared { sql: query.query, parameters: None };
        let ticket = TicketStatementQuery { statement_handle: self.handle(&prepared)? };
        info(request, &schema, ticket.as_any().encode_to_vec())
    }

    async fn do_get_statement(&self, ticket: TicketStatementQuery, request: Request<Ticket>) -> Answered<Rows> {
        self.run(&request, self.prepared(&ticket.statement_handle)?).await
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let Described { schema, parameters } = self.describe(&request, &query.query).await?;
        let named = parameters.iter().enumerate().map(|(at, field)| {
            let kind = field.as_ref().map_or(DataType::Utf8, |field| field.data_type().clone());
            Field::new(format!("${}", at + 1), kind, true)
        });
        let prepared = Prepared { sql: query.query, parameters: None };
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: self.handle(&prepared)?,
            dataset_schema: ipc(&schema)?,
            parameter_schema: ipc(&Schema::new(named.collect::<Vec<_>>()))?,
        })
    }

    /// Takes up the parameters of a statement: the handle that is returned holds them.
    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let mut prepared = self.prepared(&query.prepared_statement_handle)?;
        let row = timeout(PARAMETERS_TIME_MAX, row_of(request.into_inner())).await;
        prepared.parameters = row.map_err(|_| Status::deadline_exceeded("the parameters did not arrive in time"))??;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(self.handle(&prepared)?) })
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        let prepared = self.prepared(&query.prepared_statement_handle)?;
        let schema = self.describe(&request, &prepared.sql).await?.schema;
        info(request, &schema, query.as_any().encode_to_vec())
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<Ticket>,
    ) -> Answered<Rows> {
        self.run(&request, self.prepared(&query.prepared_statement_handle)?).await
    }

    /// There is nothing to give up: handles hold themselves.
    async fn do_action_close_prepared_statement(
        &self,
        _: ActionClosePreparedStatementRequest,
        _: Request<Action>,
    ) -> Result<(), Status> {
        Ok(())
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        info(request, &query.into_builder().schema(), query.as_any().encode_to_vec())
    }

    async fn do_get_catalogs(&self, query: CommandGetCatalogs, request: Request<Ticket>) -> Answered<Rows> {
        let sql = "SELECT DISTINCT catalog_name FROM information_schema.schemata";
        let listed = self.list(&request, sql).await?;
        let mut catalogs = query.into_builder();
        listed[0].iter().flatten().for_each(|catalog| catalogs.append(catalog));
        one(catalogs.build())
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        info(request, &query.clone().into_builder().schema(), query.as_any().encode_to_vec())
    }

    async fn do_get_schemas(&self, query: CommandGetDbSchemas, request: Request<Ticket>) -> Answered<Rows> {
        let sql = "SELECT catalog_name, schema_name FROM information_schema.schemata";
        let listed = self.list(&request, sql).await?;
        let mut schemas = query.into_builder();
        let rows = listed[0].iter().zip(listed[1].iter());
        rows.for_each(|(catalog, schema)| schemas.append(catalog.unwrap_or_default(), schema.unwrap_or_default()));
        one(schemas.build())
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        info(request, &query.clone().into_builder().schema(), query.as_any().encode_to_vec())
    }

    async fn do_get_tables(&self, query: CommandGetTables, request: Request<Ticket>) -> Answered<Rows> {
        let sql = "SELECT table_catalog, table_schema, table_name, table_type FROM information_schema.tables";
        let listed = self.list(&request, sql).await?;
        let with_schemas = query.include_schema;
        let mut tables = query.into_builder();
        for row in 0..listed[0].len() {
            let [catalog, schema, table, kind] = [0, 1, 2, 3].map(|column: usize| listed[column].value(row));
            let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
            let columns = match with_schemas {
                false => Arc::new(Schema::empty()),
                true => {
                    let sql = format!("SELECT * FROM {}.{}", quoted(schema), quoted(table));
                    self.describe(&request, &sql).await?.schema
                }
            };
            tables.append(catalog, schema, table, kind, &columns).map_err(Status::from)?;
        }
        one(tables.build())
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        info(request, &query.into_builder().schema(), query.as_any().encode_to_vec())
    }

    async fn do_get_table_types(&self, query: CommandGetTableTypes, _: Request<Ticket>) -> Answered<Rows> {
        let mut types = query.into_builder();
        ["BASE TABLE", "VIEW"].into_iter().for_each(|kind| types.append(kind));
        one(types.build())
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Answered<FlightInfo> {
        info(request, &query.clone().into_builder(&SERVER).schema(), query.as_any().encode_to_vec())
    }

    async fn do_get_sql_info(&self, query: CommandGetSqlInfo, _: Request<Ticket>) -> Answered<Rows> {
        one(query.into_builder(&SERVER).build())
    }

    /// What is told is constant.
    async fn register_sql_info(&self, _: i32, _: &SqlInfo) {}
}

/// Reads the one row of parameters that a client sends.
async fn row_of(sent: PeekableFlightDataStream) -> Result<Option<RecordBatch>, Status> {
    let mut bytes = 0;
    let data = sent.map_err(|status| FlightError::Tonic(Box::new(status))).map(move |data| {
        let data = data?;
        bytes += data.data_header.len() + data.data_body.len();
        let is_compressed = root_as_message(&data.data_header)
            .is_ok_and(|message| message.header_as_record_batch().is_some_and(|batch| batch.compression().is_some()));
        // What is compressed says by itself how much memory it takes.
        if bytes > PARAMETERS_BYTES_MAX || is_compressed {
            let message = format!("expected parameters of at most {PARAMETERS_BYTES_MAX} bytes, not compressed");
            return Err(FlightError::Tonic(Box::new(Status::invalid_argument(message))));
        }
        Ok(data)
    });
    let mut rows = FlightRecordBatchStream::new_from_flight_data(data);
    let mut row = None;
    while let Some(batch) = rows.try_next().await? {
        if batch.num_rows() == 0 {
            continue;
        }
        if batch.num_rows() > 1 || row.replace(batch).is_some() {
            return Err(Status::invalid_argument("expected one row of parameters, got several"));
        }
    }
    Ok(row)
}

/// What clients are told of the server.
static SERVER: LazyLock<SqlInfoData> = LazyLock::new(|| {
    let mut told = SqlInfoDataBuilder::new();
    told.append(SqlInfo::FlightSqlServerName, "Bellwether");
    told.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    told.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    told.append(SqlInfo::FlightSqlServerReadOnly, true);
    told.append(SqlInfo::FlightSqlServerSql, true);
    told.append(SqlInfo::FlightSqlServerSubstrait, false);
    told.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    told.build().expect("constant values")
});

/// Tells a client how to fetch an answer: from here, with this ticket.
fn info(request: Request<FlightDescriptor>, schema: &Schema, ticket: Vec<u8>) -> Answered<FlightInfo> {
    let endpoint = FlightEndpoint::new().with_ticket(Ticket { ticket: ticket.into() });
    let info = FlightInfo::new().try_with_schema(schema).map_err(failed)?;
    Ok(Response::new(info.with_descriptor(request.into_inner()).with_endpoint(endpoint)))
}

/// Answers with one batch.
fn one(batch: Result<RecordBatch, FlightError>) -> Answered<Rows> {
    let batch = batch.map_err(Status::from)?;
    let schema: SchemaRef = batch.schema();
    let rows = FlightDataEncoderBuilder::new().with_schema(schema).build(stream::iter([Ok(batch)]));
    Ok(Response::new(Box::pin(rows.map_err(Status::from))))
}

fn ipc(schema: &Schema) -> Result<Bytes, Status> {
    let message: Result<IpcMessage, ArrowError> = SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into();
    Ok(message.map_err(failed)?.0)
}

/// Returns who calls: HTTP has found it out.
fn asker<T>(request: &Request<T>) -> Result<Asker, Status> {
    let user = request.extensions().get::<Arc<User>>().cloned();
    let user = user.ok_or_else(|| Status::unauthenticated("expected to know who asks"))?;
    let client = request.extensions().get::<ConnectInfo<Activity>>().map(|ConnectInfo(activity)| activity.peer);
    Ok(Asker { user, surface: Surface::Flight, client, session: None })
}

/// Tells a caller why its query was refused.
fn refused(why: QueryError) -> Status {
    let message = why.message();
    match (&why, why.class()) {
        (QueryError::Forbidden { .. }, _) => Status::permission_denied(message),
        (QueryError::UnknownTable { .. }, _) => Status::not_found(message),
        (QueryError::Busy { .. }, _) => Status::unavailable(message),
        (QueryError::Timeout { .. }, _) => Status::deadline_exceeded(message),
        (QueryError::Killed, _) => Status::cancelled(message),
        (_, Class::User) => Status::invalid_argument(message),
        (_, Class::Limit) => Status::resource_exhausted(message),
        (_, Class::Internal) => Status::internal(message),
    }
}

fn failed(error: ArrowError) -> Status {
    Status::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    #[test]
    fn a_handle_holds_the_statement_and_its_parameters() {
        let number: ArrayRef = Arc::new(Int64Array::from(vec![7]));
        let row =
            RecordBatch::try_from_iter([("$1", number), ("$2", Arc::new(StringArray::from(vec!["api"])))]).unwrap();
        for parameters in [None, Some(row)] {
            let prepared = Prepared { sql: "SELECT $1, $2".to_owned(), parameters };
            assert_eq!(Prepared::of(&prepared.handle().unwrap()).unwrap(), prepared);
        }
        assert!(Prepared::of(b"\xff").is_err());
    }
}
