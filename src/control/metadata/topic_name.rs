//! What a topic may be called: Kafka's rules, since clients check names too.
//!
//! Control core, pure.

use crate::control::request::{Refusal, Why};

/// Bytes of the longest name.
pub const NAME_LEN_MAX: usize = 249;

/// Whether a topic may have this name.
pub fn check(name: &str) -> Result<(), Refusal> {
    let refuse = |what: String| Err(Refusal::new(Why::InvalidTopicName, what));
    if name.is_empty() {
        return refuse("a topic name cannot be empty".into());
    }
    if name.len() > NAME_LEN_MAX {
        return refuse(format!("a topic name of {} bytes is too long: {NAME_LEN_MAX} at most", name.len()));
    }
    if name == "." || name == ".." {
        return refuse(format!("a topic cannot be called '{name}'"));
    }
    let odd = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')));
    if let Some(odd) = odd {
        let shown = odd.escape_default();
        return refuse(format!(
            "topic name: '{shown}' is not allowed, only ASCII letters, digits, '.', '_' and '-'"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_kafkas_rules() {
        for good in ["a", "A.b_c-9", "...", "__consumer_offsets", &"x".repeat(NAME_LEN_MAX)] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "ü", "a\0", "a:b", &"x".repeat(NAME_LEN_MAX + 1)] {
            assert_eq!(check(bad).unwrap_err().why, Why::InvalidTopicName, "{bad:?}");
        }
    }
}
