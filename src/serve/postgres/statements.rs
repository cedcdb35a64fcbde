//! Statements: one text at a time, or prepared with parameters.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow_pg::datatypes::df::deserialize_parameters_with_server_types;
use arrow_pg::datatypes::field_into_pg_type;
use async_trait::async_trait;
use futures::{Sink, SinkExt as _, stream};
use pgwire::api::portal::{Format, Portal, PortalExecutionState};
use pgwire::api::query::{
    ExtendedQueryHandler, SimpleQueryHandler, send_execution_response, send_partial_query_response,
};
use pgwire::api::results::{FieldInfo, Response, Tag};
use pgwire::api::stmt::QueryParser;
use pgwire::api::store::{Entry, PortalStore};
use pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME, PgWireConnectionState, Type};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::extendedquery::Execute;
use pgwire::messages::response::EmptyQueryResponse;

use super::{Service, answers, session};
use crate::query::error::Class;
use crate::query::postgres::{Command, default_setting};
use crate::query::{Asker, Described, QueryError, Question, Types, statement};

/// Most statements in one text: the answers of all but the last are kept.
const STATEMENTS_MAX: usize = 100;

/// Answers statements.
#[derive(Clone)]
pub(super) struct Statements(pub Arc<Service>);

/// A statement that was prepared.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    sql: String,
    types: Types,
    command: Command,
    described: Described,
}

impl Statements {
    /// Answers one statement without parameters. Of several the answer is kept until those after it are done, so that none
    /// waits for a place that one before it holds; `keep` is how many bytes there are left for that.
    async fn answer<C: ClientInfo>(
        &self,
        client: &mut C,
        asker: &Asker,
        sql: &str,
        keep: Option<&mut usize>,
    ) -> PgWireResult<Response> {
        let command = Command::of(sql);
        if command != Command::Query {
            return self.command(client, &command, &Format::UnifiedText);
        }
        let question = Question { timeout: session::timeout(client), ..sql.into() };
        let answer = self.0.query.ask(asker, question).await.map_err(refused)?;
        let schema = answer.schema.clone();
        let Some(left) = keep else { return answers::respond(&schema, answer.stream, &Format::UnifiedText) };
        let batches = answer.collect().await.map_err(refused)?;
        let bytes = batches.iter().map(RecordBatch::get_array_memory_size).sum();
        *left = left
            .checked_sub(bytes)
            .ok_or_else(|| refused(QueryError::AnswerBytes { max: asker.user.memory_bytes_max() }))?;
        answers::respond(&schema, stream::iter(batches.into_iter().map(Ok::<_, QueryError>)), &Format::UnifiedText)
    }

    /// Returns who a connection is, as of now.
    fn asker<C: ClientInfo + ?Sized>(&self, client: &C) -> PgWireResult<Asker> {
        let asker = client.session_extensions().get::<Asker>();
        let asker = asker.ok_or_else(|| error("28000", "expected to know who asks"))?;
        let user = self.0.accounts.as_of_now(&asker.user);
        let user = user.ok_or_else(|| error("57P01", format!("{:?} may not ask any more", asker.user.name)))?;
        Ok(Asker { user, ..Asker::clone(&asker) })
    }

    /// Says what a statement takes and answers with. What nothing tells the type of is text.
    async fn describe(&self, asker: &Asker, sql: &str, types: &mut Types) -> Result<Described, QueryError> {
        let question = |types: &Types| Question { sql: sql.to_owned(), types: types.clone(), ..Question::default() };
        let described = self.0.query.describe(asker, question(types)).await?;
        if described.parameters.iter().all(Option::is_some) {
            return Ok(described);
        }
        types.resize(types.len().max(described.parameters.len()), None);
        let unknown = types.iter_mut().zip(&described.parameters).filter(|(_, known)| known.is_none());
        unknown.for_each(|(kind, _)| *kind = Some("TEXT"));
        self.0.query.describe(asker, question(types)).await
    }

    /// Does what a statement about the session asks.
    fn command<C: ClientInfo>(&self, client: &mut C, command: &Command, format: &Format) -> PgWireResult<Response> {
        Ok(match command {
            Command::Set { name, .. } if session::setting(client, name).is_none() => return Err(no_setting(name)),
            Command::Set { name, value } => {
                // What cannot be changed is told to be as it is, as clients expect of the zone and the encoding they ask for.
                if !session::FIXED.contains(&name.to_ascii_lowercase().as_str()) {
                    client.metadata_mut().insert(name.clone(), value.clone());
                }
                Response::Execution(Tag::new("SET"))
            }
            Command::Reset { name } => {
                let is_kept = |known: &str| match name {
                    Some(name) => !known.eq_ignore_ascii_case(name),
                    None => default_setting(known).is_none(),
                };
                client.metadata_mut().retain(|known, _| is_kept(known));
                Response::Execution(Tag::new(if name.is_some() { "RESET" } else { "DISCARD ALL" }))
            }
            Command::Show { name } => {
                let value = session::setting(client, name).ok_or_else(|| no_setting(name))?;
                let value = Arc::new(StringArray::from(vec![value]));
                let rows =
                    RecordBatch::try_new(shown(name), vec![value]).map_err(|why| error("XX000", why.to_string()))?;
                answers::respond(&rows.schema(), stream::iter([Ok::<_, QueryError>(rows)]), format)?
            }
            Command::Begin => Response::TransactionStart(Tag::new("BEGIN")),
            Command::Commit => Response::TransactionEnd(Tag::new("COMMIT")),
            Command::Rollback => Response::TransactionEnd(Tag::new("ROLLBACK")),
            Command::Nothing(tag) => Response::Execution(Tag::new(tag)),
            Command::Query => Response::EmptyQuery,
        })
    }
}

#[async_trait]
impl SimpleQueryHandler for Statements {
    async fn do_query<C>(&self, client: &mut C, text: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let asker = self.asker(client)?;
        let statements = statement::split(text).map_err(refused)?;
        if statements.is_empty() {
            return Ok(vec![Response::EmptyQuery]);
        }
        if statements.len() > STATEMENTS_MAX {
            return Err(error(
                "54000",
                format!("expected at most {STATEMENTS_MAX} statements in one text, got {}", statements.len()),
            ));
        }
        let mut responses = Vec::with_capacity(statements.len());
        let mut bytes_left = asker.user.memory_bytes_max();
        for (at, sql) in statements.iter().enumerate() {
            let keep = (at + 1 < statements.len()).then_some(&mut bytes_left);
            match self.answer(client, &asker, sql, keep).await {
                Ok(response) => responses.push(response),
                Err(error) if at == 0 => return Err(error),
                // Those before it are answered all the same.
                Err(error) => {
                    responses.push(Response::Error(Box::new(ErrorInfo::from(error))));
                    break;
                }
            }
        }
        Ok(responses)
    }
}

#[async_trait]
impl ExtendedQueryHandler for Statements {
    type Statement = Prepared;
    type QueryParser = Statements;

    fn query_parser(&self) -> Arc<Statements> {
        Arc::new(self.clone())
    }

    async fn do_query<C>(&self, client: &mut C, portal: &Portal<Prepared>, _max_rows: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let prepared = &portal.statement.statement;
        let format = &portal.result_column_format;
        if prepared.command != Command::Query {
            return self.command(client, &prepared.command, format);
        }
        let wire = wire_types(&prepared.described)?;
        let wire: Vec<Option<&Type>> = wire.iter().map(Some).collect();
        let types = prepared.described.parameters.iter().map(|field| field.as_ref().map(|field| field.data_type()));
        let parameters = deserialize_parameters_with_server_types(portal, &types.collect::<Vec<_>>(), &wire)?;
        let timeout = session::timeout(client);
        let (sql, types) = (prepared.sql.clone(), prepared.types.clone());
        let question = Question { sql, types, parameters: Some(parameters), timeout };
        let answer = self.0.query.ask(&self.asker(client)?, question).await.map_err(refused)?;
        if !is_as_described(&answer.schema, &prepared.described.schema) {
            // Clients read rows by what they were told; their drivers prepare anew when they hear this.
            return Err(error("0A000", "cached plan must not change result type"));
        }
        answers::respond(&answer.schema.clone(), answer.stream, format)
    }

    /// Sends rows as they come, where the way of the library would keep all of them first.
    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if !matches!(client.state(), PgWireConnectionState::ReadyForQuery) {
            return Err(PgWireError::NotReadyForQuery);
        }
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        let portal = match client.portal_store().get_portal(name) {
            Some(Entry::Value(portal)) => portal,
            Some(Entry::Empty) => {
                return Ok(client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?);
            }
            None => return Err(PgWireError::PortalNotFound(name.to_owned())),
        };
        client.set_state(PgWireConnectionState::QueryInProgress);
        let state = portal.state();
        let mut state = state.lock().await;
        if let PortalExecutionState::Initial = *state {
            match ExtendedQueryHandler::do_query(self, client, portal.as_ref(), 0).await? {
                Response::Query(rows) => *state = PortalExecutionState::Suspended(rows),
                other => {
                    *state = PortalExecutionState::Finished;
                    tell(client, other).await?;
                    client.set_state(PgWireConnectionState::ReadyForQuery);
                    return Ok(());
                }
            }
        }
        match &mut *state {
            PortalExecutionState::Suspended(rows) => {
                // As in Postgres, nothing and less is no limit.
                let rows_max = usize::try_from(message.max_rows).unwrap_or(0);
                if !send_partial_query_response(client, rows, rows_max).await? {
                    *state = PortalExecutionState::Finished;
                }
            }
            _ => tell(client, Response::Execution(Tag::new("SELECT").with_rows(0))).await?,
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        Ok(())
    }
}

/// Answers with what is not rows.
async fn tell<C>(client: &mut C, response: Response) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let (tag, status) = match response {
        Response::Execution(tag) => (tag, client.transaction_status()),
        Response::TransactionStart(tag) => (tag, client.transaction_status().to_in_transaction_state()),
        Response::TransactionEnd(tag) => (tag, client.transaction_status().to_idle_state()),
        Response::Error(error) => return Err(PgWireError::UserError(error)),
        _ => return Ok(client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?),
    };
    client.set_transaction_status(status);
    send_execution_response(client, tag).await
}

/// Returns whether columns have the names and types that a client was told.
fn is_as_described(schema: &Schema, described: &Schema) -> bool {
    let of = |schema: &Schema| -> Vec<_> {
        schema.fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
    };
    of(schema) == of(described)
}

#[async_trait]
impl QueryParser for Statements {
    type Statement = Prepared;

    async fn parse_sql<C>(&self, client: &C, sql: &str, types: &[Option<Type>]) -> PgWireResult<Option<Prepared>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let mut statements = statement::split(sql).map_err(refused)?;
        let sql = match (statements.pop(), statements.len()) {
            (None, _) => return Ok(None),
            (Some(one), 0) => one,
            (Some(_), more) => return Err(refused(QueryError::Several { count: more + 1 })),
        };
        let mut types: Types = types.iter().map(|kind| kind.as_ref().and_then(sql_type)).collect();
        let command = Command::of(&sql);
        let described = match &command {
            Command::Query => self.describe(&self.asker(client)?, &sql, &mut types).await.map_err(refused)?,
            Command::Show { name } => Described { schema: shown(name), parameters: Vec::new() },
            _ => Described { schema: Arc::new(Schema::empty()), parameters: Vec::new() },
        };
        Ok(Some(Prepared { sql, types, command, described }))
    }

    fn get_parameter_types(&self, prepared: &Prepared) -> PgWireResult<Vec<Type>> {
        wire_types(&prepared.described)
    }

    fn get_result_schema(&self, prepared: &Prepared, format: Option<&Format>) -> PgWireResult<Vec<FieldInfo>> {
        answers::fields(&prepared.described.schema, format.unwrap_or(&Format::UnifiedText))
    }
}

/// Returns the types of parameters as clients are told them: text where none follows.
fn wire_types(described: &Described) -> PgWireResult<Vec<Type>> {
    let parameters = described.parameters.iter();
    parameters.map(|field| field.as_ref().map_or(Ok(Type::TEXT), field_into_pg_type)).collect()
}

/// Returns how SQL writes a type that a client says a parameter is; none for one that anything may be written as.
fn sql_type(kind: &Type) -> Option<&'static str> {
    let types = [
        (Type::BOOL, "BOOLEAN"),
        (Type::INT2, "SMALLINT"),
        (Type::INT4, "INTEGER"),
        (Type::INT8, "BIGINT"),
        (Type::FLOAT4, "REAL"),
        (Type::FLOAT8, "DOUBLE"),
        (Type::NUMERIC, "DOUBLE"),
        (Type::BYTEA, "BYTEA"),
        (Type::DATE, "DATE"),
        (Type::TIME, "TIME"),
        (Type::TIMESTAMP, "TIMESTAMP"),
        (Type::TIMESTAMPTZ, "TIMESTAMP WITH TIME ZONE"),
        (Type::INTERVAL, "INTERVAL"),
        (Type::TEXT_ARRAY, "TEXT[]"),
        (Type::VARCHAR_ARRAY, "TEXT[]"),
        (Type::INT2_ARRAY, "SMALLINT[]"),
        (Type::INT4_ARRAY, "INTEGER[]"),
        (Type::INT8_ARRAY, "BIGINT[]"),
        (Type::FLOAT8_ARRAY, "DOUBLE[]"),
    ];
    types.into_iter().find(|(known, _)| known == kind).map(|(_, name)| name)
}

fn no_setting(name: &str) -> PgWireError {
    error("42704", format!("no setting {name:?}; SHOW TABLES lists the tables"))
}

/// The schema of what `SHOW` answers.
fn shown(name: &str) -> Arc<Schema> {
    Arc::new(Schema::new(vec![Field::new(name, DataType::Utf8, false)]))
}

/// Tells a client of Postgres why its query was refused, by the code that stands for it.
pub(super) fn refused(why: QueryError) -> PgWireError {
    let code = match (&why, why.class()) {
        (QueryError::Parse { .. } | QueryError::Several { .. } | QueryError::Empty, _) => "42601",
        (QueryError::UnknownTable { .. }, _) => "42P01",
        (QueryError::UnknownFunction { .. }, _) => "42883",
        (QueryError::Forbidden { .. }, _) => "42501",
        (QueryError::Refused { .. }, _) => "25006",
        (QueryError::Evaluate { .. }, _) => "22000",
        (QueryError::Timeout { .. } | QueryError::Killed, _) => "57014",
        (QueryError::Busy { .. }, _) => "53300",
        (QueryError::Memory { .. } | QueryError::AnswerBytes { .. }, _) => "53200",
        (_, Class::User) => "42000",
        (_, Class::Limit) => "54000",
        (_, Class::Internal) => "XX000",
    };
    error(code, why.message())
}

fn error(code: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".to_owned(), code.to_owned(), message.into())))
}
