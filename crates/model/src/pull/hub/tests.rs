//! The hub client against a small hub of our own.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
};

use super::*;

type Files = Vec<(&'static str, Vec<u8>, String)>;

/// A hub of a few files: answers the list of a model, and ranges of its files. Returns its
/// address and what was asked.
fn serve(files: Files) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines =
                BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let Some(first) = lines.next() else { continue };
            let headers: Vec<String> = lines.take_while(|l| !l.is_empty()).collect();
            let range = headers.iter().find_map(|h| {
                let h = h.to_lowercase();
                h.strip_prefix("range: bytes=").map(str::to_string)
            });
            let path = first.split(' ').nth(1).unwrap_or_default().to_string();
            log.lock().unwrap().push(format!("{path} {}", range.clone().unwrap_or_default()));
            let reply = |stream: &mut dyn Write, status: &str, more: &str, body: &[u8]| {
                let head = format!(
                    "HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
            };
            let file = files.iter().find(|(name, ..)| path == format!("/o/m/resolve/main/{name}"));
            if path == "/api/models/o/m/revision/main" {
                let list: Vec<Value> =
                    files.iter().map(|(n, ..)| serde_json::json!({"rfilename": n})).collect();
                let body = serde_json::json!({"siblings": list, "sha": "c0ffee"}).to_string();
                reply(&mut stream, "200 OK", "Content-Type: application/json\r\n", body.as_bytes());
            } else if let Some((_, content, etag)) = file {
                let range = range.unwrap_or("0-".into());
                let (from, to) = range.split_once('-').unwrap();
                let from: usize = from.parse().unwrap();
                let to = to.parse().map_or(content.len(), |t: usize| t + 1).min(content.len());
                let more = format!(
                    "X-Repo-Commit: c0ffee\r\nETag: \"{etag}\"\r\nContent-Range: bytes {from}-{}/{}\r\n",
                    to.max(1) - 1,
                    content.len()
                );
                reply(&mut stream, "206 Partial Content", &more, &content[from..to]);
            } else {
                reply(&mut stream, "404 Not Found", "", b"");
            }
        }
    });
    (address, asked)
}

fn hub(endpoint: &str, cache: &Path) -> Hub {
    Hub { endpoint: endpoint.to_string(), token: None, cache: cache.to_path_buf() }
}

fn sharded() -> Files {
    let index = serde_json::json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}});
    let shard = |text: &str| (text.as_bytes().to_vec(), io::sha256(text.as_bytes()));
    let ((one, one_hash), (two, two_hash)) = (shard("first shard"), shard("second shard"));
    vec![
        ("config.json", b"{}".to_vec(), "1".repeat(40)),
        ("model.safetensors.index.json", index.to_string().into_bytes(), "2".repeat(40)),
        ("model-1.safetensors", one, one_hash),
        ("model-2.safetensors", two, two_hash),
        ("pytorch_model.bin", b"pickle".to_vec(), "3".repeat(40)),
    ]
}

#[test]
fn a_sharded_model_arrives_whole_resumes_and_then_needs_no_network() {
    let dir = tempfile::tempdir().unwrap();
    let (address, asked) = serve(sharded());
    let hub = hub(&address, dir.path());
    assert!(
        hub.bring("o/m", true, &|_, _, _| {}).unwrap_err().to_string().contains("LUTHIER_OFFLINE")
    );
    // An earlier attempt was cut off after five bytes of the second shard.
    let blobs = dir.path().join("models--o--m").join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(io::sha256(b"second shard")).with_extension("part"), b"secon").unwrap();
    let got = hub.bring("o/m", false, &|_, _, _| {}).unwrap();
    assert_eq!(fs::read(got.join("model-1.safetensors")).unwrap(), b"first shard");
    assert_eq!(fs::read(got.join("model-2.safetensors")).unwrap(), b"second shard");
    assert!(got.join("config.json").exists() && !got.join("pytorch_model.bin").exists());
    let asked = std::mem::take(&mut *asked.lock().unwrap());
    assert!(asked.contains(&"/o/m/resolve/main/model-2.safetensors 5-".to_string()), "{asked:?}");
    assert_eq!(hub.bring("o/m", true, &|_, _, _| {}).unwrap(), got);
}

#[test]
fn damaged_missing_and_malicious_files_are_named() {
    let says = |files: Files| {
        let dir = tempfile::tempdir().unwrap();
        hub(&serve(files).0, dir.path()).bring("o/m", false, &|_, _, _| {}).unwrap_err().to_string()
    };
    let mut files = sharded();
    files[2].1 = b"first shord".to_vec();
    assert!(says(files).contains("o/m/model-1.safetensors: expected SHA-256"));
    let mut files = sharded();
    files.remove(3);
    assert!(says(files).contains("model-2.safetensors could not be brought"));
    let mut files = sharded();
    files[1].1 = br#"{"weight_map": {"a": "../../../evil"}}"#.to_vec();
    assert!(says(files).contains("not a file inside the model"));
    assert!(
        says(vec![("x.bin", vec![], "1".repeat(40))])
            .contains("neither model.safetensors nor a GGUF")
    );
}

#[test]
fn one_gguf_is_taken_of_several_one_is_asked_for() {
    let one: Files = vec![("a.gguf", b"GGUF".to_vec(), io::sha256(b"GGUF"))];
    let dir = tempfile::tempdir().unwrap();
    let got = hub(&serve(one.clone()).0, dir.path()).bring("o/m", false, &|_, _, _| {}).unwrap();
    assert_eq!(
        (got.file_name().unwrap().to_str(), fs::read(&got).unwrap()),
        (Some("a.gguf"), b"GGUF".to_vec())
    );
    let two: Files = [one, vec![("b.gguf", b"GGUG".to_vec(), io::sha256(b"GGUG"))]].concat();
    let hub_of_two = hub(&serve(two).0, dir.path().join("two").as_path());
    let error = hub_of_two.bring("o/m", false, &|_, _, _| {}).unwrap_err().to_string();
    assert!(error.contains("2 GGUF files") && error.contains("o/m:b.gguf"), "{error}");
    let got = hub_of_two.bring("o/m:b.gguf", false, &|_, _, _| {}).unwrap();
    assert_eq!(fs::read(got).unwrap(), b"GGUG");
    assert!(
        hub_of_two
            .bring("o/m:c.gguf", false, &|_, _, _| {})
            .unwrap_err()
            .to_string()
            .contains("no file c.gguf")
    );
}
