//! The rows of framing that must be refused, and those that must not, each by name.

use super::*;

const LIMITS: Limits = Limits {
    request_line: 8192,
    header_line: 16_384,
    headers: 100,
    body: None,
    is_lenient: false,
    is_uwsgi: false,
};

fn head(lines: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").into_bytes()
}

fn chunked(body: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}").into_bytes()
}

/// What a decoder finds in a stream: for each message its request line, its fields and its body; of
/// the last one as much of the body as came.
fn feed(stream: &[u8], piece: usize) -> (Vec<(String, Vec<u8>)>, Option<Refusal>) {
    feed_with(LIMITS, stream, piece)
}

fn feed_with(
    limits: Limits,
    stream: &[u8],
    piece: usize,
) -> (Vec<(String, Vec<u8>)>, Option<Refusal>) {
    let mut decoder = Decoder::new(Arc::new(limits));
    let mut messages: Vec<(String, Vec<u8>)> = Vec::new();
    for bytes in stream.chunks(piece) {
        decoder.give(bytes);
        loop {
            match decoder.body() {
                Ok(Piece::Data(data)) => {
                    messages.last_mut().unwrap().1.extend_from_slice(&data);
                    continue;
                }
                Ok(Piece::End) => {}
                Ok(Piece::Missing) => break,
                Err(refusal) => return (messages, Some(refusal)),
            }
            match decoder.head() {
                Ok(Some(received)) => messages.push((text(&received), Vec::new())),
                Ok(None) => break,
                Err(refusal) => return (messages, Some(refusal)),
            }
        }
    }
    (messages, None)
}

/// A head as it can be read.
fn text(received: &Received) -> String {
    let head = &received.head;
    let mut text = format!(
        "{} {} {:?} {:?}",
        head.method(),
        head.target().escape_ascii(),
        head.version(),
        received.length,
    );
    for header in head.headers() {
        text.push('|');
        text.extend(header.name.escape_ascii().map(char::from));
        text.push('=');
        text.extend(header.value.escape_ascii().map(char::from));
    }
    text
}

/// The refusal of a stream, which must not depend on how the stream is cut.
fn refusal(stream: &[u8]) -> Option<Refusal> {
    refusal_with(LIMITS, stream)
}

fn refusal_with(limits: Limits, stream: &[u8]) -> Option<Refusal> {
    let (messages, whole) = feed_with(limits, stream, stream.len().max(1));
    for piece in [1, 2, 3, 7, 16] {
        let (other, cut) = feed_with(limits, stream, piece);
        assert_eq!(cut, whole, "{} cut by {piece}", stream.escape_ascii());
        assert_eq!(other, messages, "cut by {piece}");
    }
    whole
}

macro_rules! refused {
    ($($name:ident: $stream:expr => $expected:pat,)*) => {$(
        #[test]
        fn $name() {
            let refused = refusal(AsRef::<[u8]>::as_ref(&$stream));
            assert!(matches!(refused, Some($expected)), "{refused:?}");
        }
    )*};
}

refused! {
    sm_cl_te: head("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n") => Refusal::TwoLengths,
    sm_te_cl: head("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n") => Refusal::TwoLengths,
    sm_dup_cl_differ: head("Content-Length: 3\r\nContent-Length: 4\r\n") => Refusal::ContentLength,
    sm_dup_cl_same: head("Content-Length: 3\r\nContent-Length: 3\r\n") => Refusal::ContentLength,
    sm_cl_list: head("Content-Length: 3, 3\r\n") => Refusal::ContentLength,
    sm_cl_plus: head("Content-Length: +3\r\n") => Refusal::ContentLength,
    sm_cl_underscore_digits: head("Content-Length: 1_0\r\n") => Refusal::ContentLength,
    sm_cl_neg: head("Content-Length: -3\r\n") => Refusal::ContentLength,
    sm_cl_hex: head("Content-Length: 0x3\r\n") => Refusal::ContentLength,
    sm_cl_latin1: [&b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: \xb2\r\n\r\n"[..]].concat()
        => Refusal::ContentLength,
    sm_cl_empty: head("Content-Length:\r\n") => Refusal::ContentLength,
    sm_cl_zeros_endless: head(&format!("Content-Length: {}3\r\n", "0".repeat(300))) => Refusal::ContentLength,
    sm_cl_overflow: head("Content-Length: 18446744073709551617\r\n") => Refusal::ContentLength,
    sm_te_xchunked: head("Transfer-Encoding: xchunked\r\n") => Refusal::UnknownCoding,
    sm_te_gzip_chunked: head("Transfer-Encoding: gzip, chunked\r\n") => Refusal::UnknownCoding,
    sm_te_identity: head("Transfer-Encoding: identity\r\n") => Refusal::UnknownCoding,
    sm_te_chunked_gzip: head("Transfer-Encoding: chunked, gzip\r\n") => Refusal::TransferEncoding,
    sm_te_chunked_list: head("Transfer-Encoding: chunked, chunked\r\n")
        => Refusal::TransferEncoding,
    sm_te_empty: head("Transfer-Encoding:\r\n") => Refusal::TransferEncoding,
    sm_te_parameter: head("Transfer-Encoding: chunked;q=1\r\n") => Refusal::TransferEncoding,
    sm_te_vertical_tab: head("Transfer-Encoding: \x0bchunked\r\n") => Refusal::Control,
    sm_te_sp_colon: head("Transfer-Encoding : chunked\r\n") => Refusal::HeaderLine,
    sm_te_tab_colon: head("Transfer-Encoding\t: chunked\r\n") => Refusal::HeaderLine,
    sm_te_http10: b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"
        => Refusal::TransferEncoding,
    sm_te_twice: head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n")
        => Refusal::TransferEncoding,
    sm_obs_fold: head("X: a\r\n b\r\n") => Refusal::HeaderLine,
    sm_te_obs_fold: head("Transfer-Encoding:\r\n chunked\r\n")
        => Refusal::HeaderLine | Refusal::TransferEncoding,
    sm_bare_cr_value: head("X: a\rb\r\n") => Refusal::Control,
    sm_bare_lf: b"GET / HTTP/1.1\nHost: a\n\n" => Refusal::LineEnd,
    sm_bare_lf_end: b"GET / HTTP/1.1\r\nHost: a\r\n\n" => Refusal::LineEnd,
    sm_nul_value: head("X: a\0b\r\n") => Refusal::Control,
    sm_nul_name: head("X\0: a\r\n") => Refusal::Control,
    sm_space_name: head("X Y: a\r\n") => Refusal::HeaderLine,
    sm_no_colon: head("XY\r\n") => Refusal::HeaderLine,
    sm_empty_name: head(": a\r\n") => Refusal::HeaderLine,
    sm_leading_ws_header: b"GET / HTTP/1.1\r\n Host: a\r\n\r\n" => Refusal::HeaderLine,
    sm_two_hosts: head("Host: b\r\n") => Refusal::Host,
    sm_no_host: b"GET / HTTP/1.1\r\n\r\n" => Refusal::Host,
    sm_host_with_path: b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n" => Refusal::Host,
    sm_host_list: b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n" => Refusal::Host,
    sm_host_port_name: b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n" => Refusal::Host,
    sm_host_open_bracket: b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n" => Refusal::Host,
    sm_host_only_port: b"GET / HTTP/1.1\r\nHost: :80\r\n\r\n" => Refusal::Host,
    sm_version_10: b"GET / HTTP/1.10\r\nHost: a\r\n\r\n" => Refusal::RequestLine,
    sm_version_0: b"GET / HTTP/0.9\r\nHost: a\r\n\r\n" => Refusal::Version,
    sm_http09: b"GET /\r\n" => Refusal::RequestLine,
    sm_version_9: b"GET / HTTP/9.9\r\nHost: a\r\n\r\n" => Refusal::Version,
    sm_version_2: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" => Refusal::Version,
    sm_version_junk: b"GET / HTTP/1.1x\r\nHost: a\r\n\r\n" => Refusal::RequestLine,
    sm_version_lower: b"GET / http/1.1\r\nHost: a\r\n\r\n" => Refusal::RequestLine,
    sm_nul_url: b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n" => Refusal::Control,
    sm_ctl_url: b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n" => Refusal::Control,
    sm_tab_url: b"GET /\ta HTTP/1.1\r\nHost: a\r\n\r\n" => Refusal::RequestLine,
    sm_space_url: b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n" => Refusal::RequestLine,
    sm_two_spaces: b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n" => Refusal::RequestLine,
    sm_method: b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n" => Refusal::RequestLine,
    sm_blank_lines: b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n" => Refusal::RequestLine,
    tls_on_a_plain_port: b"\x16\x03\x01\x02\x00\x01" => Refusal::Control,
    sm_chunk_plus: chunked("+3\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_0x: chunked("0x3\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_neg: chunked("-3\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_underscore: chunked("1_0\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_no_crlf: chunked("3\r\nabcX\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_lf: chunked("3\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_data_lf: chunked("3\r\nabc\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_huge: chunked("fffffffffffffffff\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_ext_cr: chunked("3;a\rb\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_ext_lf: chunked("3;a\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_space: chunked("3 \r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_ext_empty: chunked("3;\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_ext_no_value: chunked("3;a=\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_ext_bad_value: chunked("3;a=[x\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_ext_bad_name: chunked("3;a[=x\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_ext_no_semicolon: chunked("3 a=b\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_ext_open_quote: chunked("3;a=\"b\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_ext_behind_quote: chunked("3;a=\"b\"c\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_zeros_endless: chunked(&"0".repeat(1000)) => Refusal::Chunk,
    sm_chunk_empty_size: chunked("\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_chunk_only_extension: chunked(";a\r\nabc\r\n0\r\n\r\n") => Refusal::Chunk,
    sm_trailer_bare_lf: chunked("0\r\nX: a\n\r\n") => Refusal::Chunk,
    sm_trailer_fold: chunked("0\r\nX: a\r\n b\r\n\r\n") => Refusal::Chunk,
    sm_trailer_no_colon: chunked("0\r\nX\r\n\r\n") => Refusal::Chunk,
    lim_url_64k: format!("GET /{} HTTP/1.1\r\n", "a".repeat(65_536)).into_bytes()
        => Refusal::RequestLineTooLong,
    lim_url_endless: vec![b'A'; 100_000] => Refusal::RequestLineTooLong,
    lim_header_1m: head(&format!("X: {}\r\n", "a".repeat(1 << 20))) => Refusal::HeadersTooLarge,
    lim_headers_10k: head(&"X: a\r\n".repeat(10_000)) => Refusal::HeadersTooLarge,
    lim_headers_total: head(&format!("X: {}\r\n", "a".repeat(10_000)).repeat(7))
        => Refusal::HeadersTooLarge,
    lim_chunk_line_endless: chunked(&format!("3;{}", "a".repeat(100_000))) => Refusal::Chunk,
    lim_chunk_extensions: chunked(&format!("1;{}\r\na\r\n", "a".repeat(200)).repeat(100))
        => Refusal::Chunk,
    lim_trailers_endless: chunked(&format!("0\r\n{}", "X: a\r\n".repeat(100_000)))
        => Refusal::HeadersTooLarge,
    lim_trailer_line_endless: chunked(&format!("0\r\nX: {}", "a".repeat(100_000)))
        => Refusal::HeadersTooLarge,
}

#[test]
fn what_is_valid_is_understood_however_it_is_cut() {
    let valid: &[(&[u8], &str, &[u8])] = &[
        (
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 None|Host=a",
            b"",
        ),
        (
            b"\r\nGET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1 None|Host=",
            b"",
        ),
        (b"GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0 None", b""),
        (
            b"GET / HTTP/1.2\r\nHost: a:80\r\n\r\n",
            "GET / HTTP/1.1 None|Host=a:80",
            b"",
        ),
        (
            b"OPTIONS * HTTP/1.1\r\nhost: [::1]:80\r\nX:\ta \t\r\nEmpty:\r\n\r\n",
            "OPTIONS * HTTP/1.1 None|host=[::1]:80|X=a|Empty=",
            b"",
        ),
        (
            b"GET http://a/b?c=\xc3\xa9\"<>{ HTTP/1.1\r\nHost: a\r\nX: \xe9\r\n\r\n",
            r#"GET http://a/b?c=\xc3\xa9\"<>{ HTTP/1.1 None|Host=a|X=\xe9"#,
            b"",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 5\r\n\r\n\r\n\0\r\n",
            "POST / HTTP/1.1 Counted(5)|Host=a|content-length=5",
            b"\r\n\0\r\n",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding:  Chunked \r\n\r\n\
              00a;n=\"v\"\r\n0123456789\r\nB ; a = b\t;c\r\n01234567890\r\n\
              0000000000000000000001\r\nx\r\n0\r\n\r\n",
            "POST / HTTP/1.1 Chunked|Host=a|transfer-encoding=Chunked",
            b"012345678901234567890x",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
              1;a=\"\\\"\xff; \"\r\na\r\n0\r\nX: y\r\nZ:\r\n\r\n",
            "POST / HTTP/1.1 Chunked|Host=a|Transfer-Encoding=chunked",
            b"a",
        ),
    ];
    for (stream, head, body) in valid {
        assert_eq!(refusal(stream), None, "{}", stream.escape_ascii());
        let expected = vec![((*head).to_owned(), body.to_vec())];
        assert_eq!(feed(stream, stream.len()).0, expected);
    }
    let all = valid.iter().map(|row| row.0).collect::<Vec<_>>().concat();

    assert_eq!(refusal(&all), None);
    assert_eq!(feed(&all, 5).0.len(), valid.len());
}

#[test]
fn what_came_before_a_broken_head_is_understood() {
    let good = head("");
    let stream = [&good[..], &good, b"BROKEN\r\n\r\n"].concat();

    let (messages, refused) = feed(&stream, stream.len());

    assert_eq!(messages.len(), 2);
    assert_eq!(refused, Some(Refusal::RequestLine));
}

#[test]
fn nothing_is_understood_behind_a_refusal() {
    let mut decoder = Decoder::new(Arc::new(LIMITS));
    decoder.give(b"BROKEN\r\n");
    assert!(decoder.head().is_err());

    decoder.give(&head(""));

    assert_eq!(decoder.head().unwrap_err(), Refusal::RequestLine);
    assert_eq!(decoder.request_line(), b"BROKEN");
}

#[test]
fn a_body_that_is_longer_than_it_may_be_is_refused_however_it_is_cut() {
    let limited = Limits {
        body: Some(10),
        ..LIMITS
    };
    let counted = |count| head(&format!("Content-Length: {count}\r\n"));
    let chunked = |chunks: &str| {
        let mut stream = head("Transfer-Encoding: chunked\r\n");
        stream.extend_from_slice(chunks.as_bytes());
        stream
    };
    for piece in [1, 7, 1000] {
        let refusal = |stream: &[u8]| feed_with(limited, stream, piece).1;
        assert_eq!(refusal(&counted(10)), None);
        assert_eq!(refusal(&counted(11)), Some(Refusal::BodyTooLarge));
        assert_eq!(refusal(&counted(1_u64 << 40)), Some(Refusal::BodyTooLarge));
        assert_eq!(
            refusal(&chunked("5\r\nabcde\r\n5\r\nabcde\r\n0\r\n\r\n")),
            None
        );
        let by_one = chunked("5\r\nabcde\r\n6\r\n");
        assert_eq!(refusal(&by_one), Some(Refusal::BodyTooLarge));
        let at_once = chunked("fffffffffffff\r\n");
        assert_eq!(refusal(&at_once), Some(Refusal::BodyTooLarge));
    }
}

#[test]
fn a_lenient_decoder_forgives_only_a_missing_host() {
    let lenient = Limits {
        is_lenient: true,
        is_uwsgi: false,
        ..LIMITS
    };
    let missing = b"GET / HTTP/1.1\r\n\r\n";
    let twice = b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";

    assert_eq!(feed_with(lenient, missing, 99).1, None);
    assert_eq!(feed_with(lenient, twice, 99).1, Some(Refusal::Host));
}

#[test]
fn knows_where_messages_begin_and_end() {
    let mut decoder = Decoder::new(Arc::new(LIMITS));
    assert!(decoder.is_between_messages());

    decoder.give(b"POST / HT");
    assert!(decoder.head().unwrap().is_none());
    assert!(!decoder.is_between_messages());
    decoder.give(b"TP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab");
    assert!(decoder.head().unwrap().is_some());
    assert_eq!(decoder.outstanding(), Some(5));
    assert_eq!(decoder.body(), Ok(Piece::Data("ab".into())));
    assert_eq!(decoder.outstanding(), Some(3));
    assert_eq!(decoder.body(), Ok(Piece::Missing));
    decoder.give(b"cde");
    assert_eq!(decoder.body(), Ok(Piece::Data("cde".into())));

    assert!(decoder.is_between_messages());
}

#[test]
fn knows_what_a_client_says_about_its_connection() {
    let persistent = |version: &str, field: &str| {
        let mut decoder = Decoder::new(Arc::new(LIMITS));
        decoder.give(format!("GET / {version}\r\nHost: a\r\n{field}\r\n").as_bytes());
        decoder.head().unwrap().unwrap().is_persistent
    };

    assert!(persistent("HTTP/1.1", ""));
    assert!(!persistent("HTTP/1.1", "Connection: x, Close\r\n"));
    assert!(!persistent(
        "HTTP/1.1",
        "Connection: x\r\nconnection: close\r\n"
    ));
    assert!(!persistent("HTTP/1.0", ""));
    assert!(persistent("HTTP/1.0", "Connection: Keep-Alive\r\n"));
    assert!(!persistent("HTTP/1.0", "Connection: keep-alive, close\r\n"));
}

#[test]
fn limits_are_exclusive_as_in_oslo() {
    let line = |length: usize| {
        let path = "a".repeat(length - "GET / HTTP/1.1".len());
        format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes()
    };

    assert_eq!(refusal(&line(8191)), None);
    let long = Limits {
        request_line: 200_000,
        ..LIMITS
    };
    assert_eq!(feed_with(long, &line(150_000), 4096).1, None);
    assert_eq!(refusal(&line(8192)), Some(Refusal::RequestLineTooLong));
    assert_eq!(
        refusal(&head(&format!("X: {}\r\n", "a".repeat(16_383 - 3)))),
        None
    );
    assert_eq!(
        refusal(&head(&format!("X: {}\r\n", "a".repeat(16_384 - 3)))),
        Some(Refusal::HeadersTooLarge)
    );
}

#[test]
fn of_several_faults_the_first_one_decides() {
    let narrow = Limits {
        request_line: 20,
        header_line: 20,
        ..LIMITS
    };
    let judged = |stream: &[u8]| refusal_with(narrow, stream);

    // No method, in front of a version that does not exist.
    assert_eq!(
        judged(b" /a HTTP/2.0\r\nHost: a\r\n\r\n"),
        Some(Refusal::RequestLine)
    );
    // A control character in front of the bound of a line, and behind it.
    assert_eq!(
        judged(b"GET /\0aaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\n\r\n"),
        Some(Refusal::Control)
    );
    assert_eq!(
        judged(b"GET /aaaaaaaaaaaaaaaaaaaaaa\0 HTTP/1.1\r\n\r\n"),
        Some(Refusal::RequestLineTooLong)
    );
    assert_eq!(
        judged(b"GET / HTTP/1.1\r\nX: aaaaaaaaaaaaaaaaa\x01\r\n\r\n"),
        Some(Refusal::HeadersTooLarge)
    );
    // A line of the longest length that ends in a bare LF, and in a bare CR.
    assert_eq!(
        judged(b"GET / HTTP/1.1\r\nX: aaaaaaaaaaaaaaaa\n\r\n"),
        Some(Refusal::LineEnd)
    );
    assert_eq!(
        judged(b"GET / HTTP/1.1\r\nX: aaaaaaaaaaaaaaaaa\n\r\n"),
        Some(Refusal::HeadersTooLarge)
    );
    assert_eq!(
        judged(b"GET / HTTP/1.1\r\nX: aaaaaaaaaaaaaaaa\r\r\n\r\n"),
        Some(Refusal::HeadersTooLarge)
    );
    assert_eq!(
        judged(b"GET / HTTP/1.1\r\nX: aaaaaaaaaaaaaaa\r\r\n\r\n"),
        Some(Refusal::Control)
    );
    // Faults around the bound of a whole head.
    for fault in ["\0", "no colon\r\n\r\n", "\n", "Host: b\r\n\r\n"] {
        for left in [0, 1, 2, 3, 9, 11] {
            let mut stream = b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec();
            while stream.len() < HEAD_BYTES - left {
                let most = HEAD_BYTES - left - stream.len();
                if most < 5 {
                    stream.extend(std::iter::repeat_n(b'a', most));
                } else {
                    let value = "a".repeat(most.min(8_000) - 5);
                    stream.extend_from_slice(format!("X: {value}\r\n").as_bytes());
                }
            }
            stream.extend_from_slice(fault.as_bytes());
            refusal(&stream);
        }
    }
}

/// A stand-in for a fuzzer that needs no tool: many streams made of telling fragments, cut in many
/// ways, must be judged the same way, and never panic.
#[test]
fn random_streams_are_judged_alike_however_they_are_cut() {
    const FRAGMENTS: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n",
        b"POST /x HTTP/1.1\r\n",
        b"GET / HTTP/1.0\r\n",
        b"Host: a\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"X: y\r\n",
        b"\r\n",
        b"\r\n",
        b"\r\n",
        b"abc",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"\r",
        b"\n",
        b" ",
        b":",
        b"\0",
        b"0",
        b";",
        b"\xff",
    ];
    // A linear congruential generator: the same streams in every run.
    let mut seed = 1_u64;
    let mut random = move |below: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let (mut refusals, mut passes) = (0, 0);
    let narrow = Limits {
        request_line: 18,
        header_line: 20,
        headers: 2,
        ..LIMITS
    };
    for _ in 0..5_000 {
        let mut stream = Vec::new();
        if random(4) > 0 {
            stream.extend_from_slice(b"POST / HTTP/1.1\r\nHost: a\r\n");
        }
        for _ in 0..random(12) {
            stream.extend_from_slice(FRAGMENTS[random(FRAGMENTS.len())]);
        }
        refusal_with(narrow, &stream);
        match refusal(&stream) {
            Some(_) => refusals += 1,
            None => passes += 1,
        }
    }

    assert!(
        refusals > 500 && passes > 100,
        "{refusals} refused, {passes} passed"
    );
}
