//! The database users of a new cluster. (PG-108, PG-109)

use crate::ha::ports::PgError;
use crate::postgres::room::LocalPostgres;
use crate::postgres::session::{Session, SqlError, Target, identifier, literal};
use crate::postgres::settings::{Login, Settings};
use hathi_dcs::Deadline;

const WHAT: &str = "creating the users";

/// Keeps passwords out of the server's log, and synchronous standbys out of the way. (PG-109)
const QUIET: &str = "SET log_statement TO none; SET log_min_duration_statement TO -1; \
 SET log_min_error_statement TO log; SET pg_stat_statements.track_utility TO off; \
 SET pgaudit.log TO none; SET synchronous_commit TO local";

impl LocalPostgres {
    /// Only if both name and password are configured.
    pub(super) async fn create_superuser(
        &self,
        settings: &Settings,
        by: Deadline,
    ) -> Result<(), PgError> {
        let login = &settings.superuser;
        if login.username.is_none() || login.password.is_none() {
            return Ok(());
        }
        let work = async {
            let session = quiet_session(settings, by).await?;
            create_or_alter(&session, login, "SUPERUSER", by).await
        };
        work.await.map_err(|why| Self::failed(WHAT, why))
    }

    pub(super) async fn create_other_users(
        &self,
        settings: &Settings,
        by: Deadline,
    ) -> Result<(), PgError> {
        let work = async {
            let session = quiet_session(settings, by).await?;
            if settings.replication.username.is_some() {
                create_or_alter(&session, &settings.replication, "REPLICATION", by).await?;
            }
            let Some(rewind) = &settings.rewind else { return Ok(()) };
            if rewind.username == settings.superuser.username {
                return Ok(());
            }
            create_or_alter(&session, rewind, "", by).await?;
            let Some(name) = &rewind.username else { return Ok(()) };
            for function in [
                "pg_ls_dir(text, boolean, boolean)",
                "pg_stat_file(text, boolean)",
                "pg_read_binary_file(text)",
                "pg_read_binary_file(text, bigint, bigint, boolean)",
            ] {
                let name = identifier(name);
                let sql = format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {name}");
                session.run(&sql, by).await?;
            }
            Ok(())
        };
        work.await.map_err(|why: SqlError| Self::failed(WHAT, why))
    }
}

async fn quiet_session(settings: &Settings, by: Deadline) -> Result<Session, SqlError> {
    let session = Session::open(&Target::local(settings, 0), by).await?;
    session.run(QUIET, by).await?;
    Ok(session)
}

async fn create_or_alter(
    session: &Session,
    login: &Login,
    attributes: &str,
    by: Deadline,
) -> Result<(), SqlError> {
    let Some(name) = &login.username else { return Ok(()) };
    let sql = format!("SELECT 1 FROM pg_roles WHERE rolname = {}", literal(name));
    let exists = !session.rows(&sql, by).await?.is_empty();
    let verb = if exists { "ALTER" } else { "CREATE" };
    let mut sql = format!("{verb} ROLE {} WITH LOGIN {attributes}", identifier(name));
    if let Some(password) = &login.password {
        sql.push_str(&format!(" PASSWORD {}", literal(password)));
    }
    session.run(&sql, by).await
}
