//! `/ui`. (REST-474)

use super::{Served, primary};
use crate::api::openapi::DESCRIPTION;
use crate::api::ui::PAGE;
use serde_json::Value;

/// Proves REST-474: one page, complete in itself, that only reads, and only what is described; nothing
/// of it comes from elsewhere, and no browser would let it.
#[tokio::test]
async fn the_page_is_complete_and_reads_only() {
    let served = Served::new(primary()).await;
    let reply = served.get("/ui").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, PAGE));
    assert_eq!(reply.header("content-type"), Some("text/html;charset=utf-8"));
    let policy = reply.header("content-security-policy").expect("a policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"));
    assert!(policy.contains("frame-ancestors 'none'"));
    for elsewhere in ["src=", "@import", "url(", "innerHTML", "eval(", "method:", "POST", "PATCH"] {
        assert!(!PAGE.contains(elsewhere), "{elsewhere}");
    }
    let links = PAGE.matches("http://").count() + PAGE.matches("https://").count();
    assert_eq!(links, 1, "the name of SVG only");
    assert!(PAGE.contains("prefers-color-scheme: dark") && PAGE.contains("name=\"viewport\""));
    let description: Value = serde_json::from_str(DESCRIPTION).expect("JSON");
    let mut asked = 0;
    for quoted in PAGE.split('"').skip(1).step_by(2).filter(|text| text.starts_with('/')) {
        let path = quoted.split('?').next().unwrap_or_default();
        assert!(description["paths"][path]["get"].is_object(), "{path} is not described");
        asked += 1;
    }
    assert!(asked >= 6, "{asked} paths");
}
