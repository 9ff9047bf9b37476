//! What is answered about an object before it is stored.

/// The answer. Refused for any reason, it is not stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Review {
    /// Why it may not be stored, one sentence each.
    pub refused: Vec<String>,
    /// What its author should know, one sentence each.
    pub warnings: Vec<String>,
}

impl Review {
    /// For one reason.
    pub fn refuse(reason: impl Into<String>) -> Self {
        Self { refused: vec![reason.into()], warnings: Vec::new() }
    }
}
