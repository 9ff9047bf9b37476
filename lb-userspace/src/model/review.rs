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

    /// The same for who is to be told and not stopped.
    pub fn without_refusal(self) -> Self {
        let Self { refused, warnings } = self;
        let told = refused.into_iter().map(|reason| format!("would be refused: {reason}"));
        Self { refused: Vec::new(), warnings: told.chain(warnings).collect() }
    }
}
