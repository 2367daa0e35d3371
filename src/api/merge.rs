//! How a PATCH changes the dynamic configuration. Pure; the agent calls it with what it read.

use serde_json::{Map, Value};

/// The configuration after the patch; `None` when nothing changes, so that nothing need be written.
///
/// Null deletes, objects merge into objects, everything else replaces. A value that differs in type
/// only (`"20"` for `20`) is a change. (REST-163, REST-470)
pub fn merged(
    current: &Map<String, Value>,
    patch: &Map<String, Value>,
) -> Option<Map<String, Value>> {
    let mut config = current.clone();
    apply(&mut config, patch).then_some(config)
}

fn apply(config: &mut Map<String, Value>, patch: &Map<String, Value>) -> bool {
    let mut changed = false;
    for (key, value) in patch {
        changed |= match (config.get_mut(key), value) {
            (None, Value::Null) => false,
            (Some(_), Value::Null) => config.shift_remove(key).is_some(),
            (Some(Value::Object(into)), Value::Object(from)) => apply(into, from),
            (Some(old), new) if old == new => false,
            (Some(_) | None, new) => {
                config.insert(key.clone(), new.clone());
                true
            }
        };
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no object"),
        }
    }

    /// Proves REST-163 (the merge), REST-470.
    #[test]
    fn a_patch_merges() {
        let current = json!({"ttl": 20, "postgresql": {"parameters": {"work_mem": "8MB"}}, "x": 1});
        for (patch, expected) in [
            (json!({"ttl": 20}), None),
            (json!({"nosuch": null}), None),
            (json!({"postgresql": {"parameters": {}}}), None),
            (
                json!({"ttl": "20"}),
                Some(
                    json!({"ttl": "20", "postgresql": {"parameters": {"work_mem": "8MB"}}, "x": 1}),
                ),
            ),
            (
                json!({"postgresql": {"parameters": {"work_mem": null}}}),
                Some(json!({"ttl": 20, "postgresql": {"parameters": {}}, "x": 1})),
            ),
            (
                json!({"x": {"a": null}, "postgresql": null}),
                Some(json!({"ttl": 20, "x": {"a": null}})),
            ),
            (json!({"postgresql": "text"}), Some(json!({"ttl": 20, "postgresql": "text", "x": 1}))),
        ] {
            let got = merged(&map(current.clone()), &map(patch.clone())).map(Value::Object);
            assert_eq!(got, expected, "{patch}");
        }
        let keys: Vec<_> = merged(&map(current), &map(json!({"ttl": 30, "new": 1})))
            .map(|config| config.keys().cloned().collect())
            .unwrap_or_default();
        assert_eq!(keys, ["ttl", "postgresql", "x", "new"], "the order stays");
    }
}
