//! The dynamic document and the local configuration become [`Settings`].

use super::{ConfigError, Local, Problem, Settings, Warning};
use serde_json::{Map, Value};

/// The settings in force under this dynamic document. (CFG-030 … CFG-039)
///
/// Pure: call it again at each change of the document. An empty document must not be handed in
/// once settings are in force (CFG-039).
///
/// # Errors
/// The document cannot be applied; the caller keeps the settings it has and says so once. (CFG-038)
pub fn effective(
    local: &Local,
    dynamic: &Map<String, Value>,
) -> Result<(Settings, Vec<Warning>), ConfigError> {
    let _ = (local, dynamic);
    let text = "the dynamic configuration is not written yet".to_owned();
    Err(ConfigError { problems: vec![Problem { origin: None, path: String::new(), text }] })
}
