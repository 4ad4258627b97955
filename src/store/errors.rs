//! What a failed statement says about the database. Decided here alone, by SQLSTATE and never by
//! the server's message.

use sqlx::postgres::PgDatabaseError;
use std::time::Duration;
use uuid::Uuid;

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused, or could not be reached.
    #[error("{}", words(.0))]
    Database(#[from] sqlx::Error),
    /// The database neither answered nor broke the connection.
    #[error("the database did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// A new connection led to another server than the one before, or it was restarted meanwhile.
    /// Nothing is written there before the heartbeat has compared that server's history with what
    /// this process has committed.
    #[error("the database's server was restarted, or another one has taken its place")]
    Moved,
    /// Reading what the database holds ended in a panic: a value that no version of paypoll writes.
    #[error("what the database holds cannot be read")]
    Unreadable,
    /// A column of one row has a value that cannot be read.
    #[error("column {column} of {table} {id} cannot be read: {why}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The row.
        id: Uuid,
        /// What is wrong with it.
        why: String,
    },
    /// None of the hosts in the connection string is as wanted.
    #[error("no host of database.url can be used: {0}")]
    NoHost(String),
    /// The connection string cannot be read.
    #[error("database.url: {0}")]
    Url(String),
    /// The database or the session has not the settings that paypoll needs.
    #[error("{0}")]
    Unfit(String),
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The database cannot be reached, or does not take writes now: wait until it does.
    Unavailable,
    /// A conflict with another transaction: the same again.
    Conflict,
    /// The statement took longer than it may: the database is slow, or it hangs on one of the rows.
    TimedOut,
    /// The database refuses the statement's content: the same statement would be refused again.
    Refused,
}

impl StoreError {
    /// What to do about it.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Database(sqlx::Error::Database(error)) => error.code().map_or(Trouble::Refused, |code| of_code(&code)),
            Self::Database(sqlx::Error::Encode(_)) | Self::Corrupt { .. } => Trouble::Refused,
            Self::Database(_)
            | Self::Silent(_)
            | Self::Moved
            | Self::Unreadable
            | Self::NoHost(_)
            | Self::Url(_)
            | Self::Unfit(_) => Trouble::Unavailable,
        }
    }

    /// The SQLSTATE, where the server gave one.
    #[must_use]
    pub fn code(&self) -> Option<String> {
        match self {
            Self::Database(sqlx::Error::Database(error)) => error.code().map(Into::into),
            _ => None,
        }
    }

    /// The journal has no partition for the day of a poll. The server reports it as a violated
    /// check that no constraint made.
    #[must_use]
    pub fn is_missing_partition(&self) -> bool {
        let Self::Database(sqlx::Error::Database(error)) = self else { return false };
        error
            .try_downcast_ref::<PgDatabaseError>()
            .is_some_and(|error| error.code() == "23514" && error.table() == Some("polls") && error.constraint().is_none())
    }

    /// The session takes no writes: its server is a standby or was demoted.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.code().is_some_and(|code| code == "25006")
    }

    /// A lock was not granted in time.
    #[must_use]
    pub fn is_lock_timeout(&self) -> bool {
        self.code().is_some_and(|code| code == "55P03")
    }
}

/// Classifies a SQLSTATE. Refusal is the default, because most codes concern the statement's
/// content; the exceptions are listed.
fn of_code(code: &str) -> Trouble {
    match code {
        // query_canceled: `statement_timeout`, or an administrator.
        "57014" => Trouble::TimedOut,
        // lock_not_available: after rows that are locked were left out, only a table's lock is
        // still waited for.
        "55P03" => Trouble::Unavailable,
        // read_only_sql_transaction: a standby, or a primary that was demoted.
        "25006" => Trouble::Unavailable,
        // idle_in_transaction_session_timeout and its like.
        "25P03" | "25P04" => Trouble::Unavailable,
        _ => match code.get(..2) {
            // Connections, resources, shutdown and crash; roles and databases that are not there (yet).
            Some("08" | "53" | "57" | "28" | "3D") => Trouble::Unavailable,
            Some("40") => Trouble::Conflict,
            _ => Trouble::Refused,
        },
    }
}

/// The message of the database or of the connection. Of the database's own errors only its
/// sentence: sqlx adds a line of PostgreSQL's source.
pub(super) fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_codes_of_availability_say_that_the_database_is_away() {
        let all = |codes: &[&str], trouble| codes.iter().all(|code| of_code(code) == trouble);
        assert!(all(
            &["08006", "08P01", "53100", "53200", "53300", "57P01", "57P02", "57P03", "57P05", "25006", "28P01", "28000", "3D000"],
            Trouble::Unavailable
        ));
        assert!(all(&["40001", "40P01"], Trouble::Conflict));
        assert!(all(&["57014"], Trouble::TimedOut));
        assert!(all(&["P0001", "23514", "22003", "42501", "42P01", "XX000", "0A000", "54000", "58030", "", "?"], Trouble::Refused));
    }
}
