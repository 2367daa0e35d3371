//! The shapes an answer can have. (REST-002, REST-003)

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use hyper::ext::ReasonPhrase;
use serde::Serialize;
use warp::reply::Response;

use crate::api::pyjson;

/// Marks an answer that carries the extra headers of the configuration. (REST-302)
#[derive(Clone, Copy, Debug)]
pub struct Normal;

pub fn json_bytes(status: StatusCode, body: Bytes) -> Response {
    normal(status, HeaderValue::from_static("application/json"), body)
}

pub fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Response {
    json_bytes(status, Bytes::from(pyjson::text(value)))
}

/// A sentence for people; `text/html` is what clients of this API expect. (REST-003)
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response {
    normal(status, HeaderValue::from_static("text/html"), body.into())
}

pub fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response {
    normal(status, HeaderValue::from_static("text/plain"), body.into())
}

fn normal(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response.extensions_mut().insert(Normal);
    response
}

/// Nothing but the status. (REST-004)
pub fn bare(status: StatusCode) -> Response {
    let mut response = Response::new(Bytes::new().into());
    *response.status_mut() = status;
    response
}

/// The error page, byte for byte as clients know it. (REST-002)
pub fn page(status: StatusCode) -> Response {
    let message = status.canonical_reason().unwrap_or("Error").to_owned();
    page_with(status, &message)
}

/// (REST-006)
pub fn unsupported(method: &Method) -> Response {
    // A method may be any token; it comes from the client and goes into HTML.
    let method = escape(method.as_str());
    let message = format!("Unsupported method ('{method}')");
    let mut response = page_with(StatusCode::NOT_IMPLEMENTED, &message);
    if let Ok(phrase) = ReasonPhrase::try_from(Bytes::from(message)) {
        response.extensions_mut().insert(phrase);
    }
    response
}

fn page_with(status: StatusCode, message: &str) -> Response {
    let code = status.as_u16();
    let why = explanation(status);
    let body = format!(
        "<!DOCTYPE HTML>\n<html lang=\"en\">\n    <head>\n        <meta charset=\"utf-8\">\n        \
         <title>Error response</title>\n    </head>\n    <body>\n        <h1>Error response</h1>\n        \
         <p>Error code: {code}</p>\n        <p>Message: {message}.</p>\n        \
         <p>Error code explanation: {code} - {why}.</p>\n    </body>\n</html>\n"
    );
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html;charset=utf-8"));
    response
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn explanation(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "Bad request syntax or unsupported method",
        408 => "Request timed out; try again later",
        409 => "Request conflict",
        411 => "Client must specify Content-Length",
        413 => "Entity is too large",
        422 => "Unprocessable request",
        501 => "Server does not support this operation",
        502 => "Invalid responses from another server/proxy",
        503 => "The server cannot process the request due to a high load",
        500 => "Server got itself in trouble",
        _ => "See the message",
    }
}

/// What an answer to OPTIONS keeps of the one to GET: the status. (REST-004, REST-454)
pub fn for_method(method: &Method, response: Response) -> Response {
    if *method == Method::OPTIONS { bare(response.status()) } else { response }
}
