//! x
use super::summary::Summary;
pub fn page(runs: &[&Summary]) -> String {
    format!("{}", runs.len())
}
