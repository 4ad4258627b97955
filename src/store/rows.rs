//! Rows and arrays: between what PostgreSQL keeps and what the code works with.

use super::StoreError;
use sqlx::postgres::{PgRow, Postgres};
use sqlx::{Decode, Row, Type};
use uuid::Uuid;

/// One value of each item, as PostgreSQL takes them: an array for each column.
pub(super) fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

/// A count as PostgreSQL's integer; one that does not fit stays at the largest.
pub(super) fn int(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// A row with an id, whose columns are named where they cannot be read.
pub(super) struct Named<'a> {
    row: &'a PgRow,
    table: &'static str,
    /// The row's id.
    pub(super) id: Uuid,
}

impl<'a> Named<'a> {
    /// A row of `table`.
    pub(super) fn new(row: &'a PgRow, table: &'static str) -> Result<Self, StoreError> {
        Ok(Self { row, table, id: row.try_get("id")? })
    }

    /// What stands in a column.
    pub(super) fn get<T: Decode<'a, Postgres> + Type<Postgres>>(&self, column: &'static str) -> Result<T, StoreError> {
        self.row.try_get(column).map_err(|error| self.corrupt(column, error.to_string()))
    }

    /// The error that names a column.
    pub(super) fn corrupt(&self, column: &'static str, why: String) -> StoreError {
        StoreError::Corrupt { table: self.table, column, id: self.id, why }
    }
}
