//! What a reading client asked: GET, HEAD and OPTIONS share every route. (REST-454)

use bytes::Bytes;
use http::Method;
use percent_encoding::percent_decode;
use warp::filters::BoxedFilter;
use warp::path::FullPath;
use warp::{Filter, Rejection};

/// A request that changes nothing.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Only GET has a body in its answer; HEAD's is dropped on the way out, OPTIONS gets none.
    pub method: Method,
    /// As sent, without query; leading slashes collapsed, escapes kept. (REST-030)
    pub path: String,
    pub query: Query,
}

/// What lies between the first two slashes. (REST-031)
fn first_segment(path: &str) -> &str {
    path.trim_start_matches('/').split('/').next().unwrap_or_default()
}

/// Lets GET, HEAD and OPTIONS through, if the first segment of the path is one of ours. Every route is
/// tried in turn, so nothing of a request is taken apart before it is known to be the route's own.
pub fn readable(
    is_ours: impl Fn(&str) -> bool + Clone + Send + Sync + 'static,
) -> BoxedFilter<(Asked,)> {
    warp::method()
        .and(warp::path::full())
        .and_then(move |method: Method, path: FullPath| {
            let ours = is_readable(&method) && is_ours(first_segment(path.as_str()));
            std::future::ready(if ours {
                Ok::<_, Rejection>((method, path))
            } else {
                Err(warp::reject::not_found())
            })
        })
        .untuple_one()
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .map(|method: Method, path: FullPath, query: String| {
            let path = collapse(path.as_str()).to_owned();
            Asked { method, path, query: Query::parse(&query) }
        })
        .boxed()
}

/// Lets through what is readable and begins with this segment. (REST-031)
pub fn readable_under(segment: &'static str) -> BoxedFilter<(Asked,)> {
    readable(move |first| first == segment)
}

/// Lets through a writing method on this first segment, and nothing of the request else.
pub fn writes(method: Method, segment: &'static str) -> BoxedFilter<()> {
    warp::method()
        .and(warp::path::full())
        .and_then(move |asked: Method, path: FullPath| {
            let hit = asked == method && first_segment(path.as_str()) == segment;
            std::future::ready(if hit { Ok(()) } else { Err(warp::reject::not_found()) })
        })
        .untuple_one()
        .boxed()
}

pub fn is_readable(method: &Method) -> bool {
    *method == Method::GET || *method == Method::HEAD || *method == Method::OPTIONS
}

/// `//x` is `/x`. (REST-030)
fn collapse(path: &str) -> &str {
    let slashes = path.len() - path.trim_start_matches('/').len();
    &path[slashes.saturating_sub(1)..]
}

/// The query string as a form: empty values dropped, the first of repeated keys wins. (REST-034)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(raw: &str) -> Self {
        let mut pairs = Vec::new();
        for part in raw.split('&') {
            let Some((key, value)) = part.split_once('=') else { continue };
            if !value.is_empty() {
                pairs.push((decode(key), decode(value)));
            }
        }
        Self(pairs)
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Every key once, in the order in which they first came.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .enumerate()
            .filter(|(at, (key, _))| !self.0[..*at].iter().any(|(earlier, _)| earlier == key))
            .map(|(_, (key, value))| (key.as_str(), value.as_str()))
    }
}

fn decode(text: &str) -> String {
    let spaced = Bytes::from(text.replace('+', " "));
    percent_decode(&spaced).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Proves REST-034.
    #[test]
    fn a_query_is_a_form() {
        let query = Query::parse("lag=&lag=5&lag=6&tag_a+b=x%20y&&novalue&A=1;B=2&=e&tag_=v");
        assert_eq!(query.get("lag"), Some("5"));
        assert_eq!(query.get("tag_a b"), Some("x y"));
        assert_eq!(query.get("novalue"), None);
        assert_eq!(query.get("A"), Some("1;B=2"));
        assert_eq!(query.get("a"), None);
        assert_eq!(query.get(""), Some("e"));
        assert_eq!(query.iter().filter(|(key, _)| *key == "lag").count(), 1);
    }

    /// Proves REST-030 (the slashes), REST-031 (the first segment).
    #[test]
    fn paths_are_kept_as_sent() {
        for (sent, kept) in
            [("/a", "/a"), ("//a//b", "/a//b"), ("/", "/"), ("///", "/"), ("*", "*")]
        {
            assert_eq!(collapse(sent), kept);
        }
        for (path, segment) in [
            ("/patroni/", "patroni"),
            ("/liveness/x", "liveness"),
            ("/", ""),
            ("/%72eplica", "%72eplica"),
        ] {
            assert_eq!(first_segment(path), segment);
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(raw in ".{0,60}") {
            let query = Query::parse(&raw);
            let _ = query.iter().count();
        }
    }
}
