//! What the control core decides. Pure: it reads no clock, opens nothing, and what it wants durable it proposes.

pub mod metadata;
pub mod request;
