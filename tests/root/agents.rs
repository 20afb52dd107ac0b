//! A day in the life of a coding agent: many names, ports that matter, and attempts to carry things out.

use std::{fs, net::IpAddr, process::Command};

use lab::{EVIL, Lab, need};

/// A bare repository with one file below the servers' `/www/`, ready for clients that know only plain HTTP.
pub(crate) fn repository(lab: &Lab) {
    need("git");
    let (www, source) = (lab.www_dir(), lab.directory().join("source"));
    fs::create_dir_all(&www).unwrap();
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("readme"), "hello\n").unwrap();
    let bare = www.join("repo.git");
    let git = |at: &std::path::Path, words: &[&str]| {
        let mut command = Command::new("git");
        command.env_clear().env("PATH", lab::PATH).env("HOME", lab.directory()).env("GIT_CONFIG_NOSYSTEM", "1");
        command.args(["-c", "user.name=lab", "-c", "user.email=lab@ok.test", "-c", "init.defaultBranch=main"]);
        let output = command.args(words).current_dir(at).output().unwrap();
        assert!(output.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    git(&source, &["init", "-q"]);
    git(&source, &["add", "readme"]);
    git(&source, &["commit", "-q", "-m", "one"]);
    git(&source, &["clone", "-q", "--bare", ".", bare.to_str().unwrap()]);
    git(&bare, &["update-server-info"]);
}

#[test]
fn t28_multi_name_mock_agent() {
    need("wget");
    need("nc");
    let lab = Lab::new();
    repository(&lab);
    let (token, certificate) = (lab.token("agent"), lab.https().display().to_string());
    let script = lab.file("agent.sh", include_str!("../probes/agent.sh"));
    let output = lab
        .egressd("run")
        .env("HOME", lab.work_dir())
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .flags("--allow a.test --allow b.test:443 --allow c.test --allow d.test --allow e.test")
        .program(&["sh", script.to_str().unwrap(), &certificate, &token])
        .output();
    output.exits(0);
    for step in ["clone", "content", "secure", "package", "wheel", "api", "other", "local"] {
        assert_eq!(
            output.step(step),
            0,
            "{step}: {output}\n{:?}",
            fs::read_to_string(lab.work_dir().join("agent.log"))
        );
    }
    for step in ["stranger", "plain", "upload", "address", "ssh-a", "ssh-b", "ssh-c", "ssh-d", "ssh-e"] {
        assert_ne!(output.step(step), 0, "{step}: {output}");
    }
    let mut asked: Vec<_> = lab.all_hits().iter().map(|hit| format!("{} {}", hit.dst, hit.request())).collect();
    asked.retain(|line| !line.contains("/www/repo.git/objects/"));
    assert!(asked.iter().any(|line| line.starts_with("198.51.100.11:80 GET /www/repo.git/info/refs")), "{asked:#?}");
    asked.retain(|line| !line.contains("/www/repo.git/"));
    asked.sort();
    assert_eq!(
        asked,
        [
            format!("198.51.100.12:443 GET /{token}-secure HTTP/1.1"),
            format!("198.51.100.13:80 GET /bytes/100000/{token}-wheel HTTP/1.1"),
            format!("198.51.100.13:80 GET /{token}-package HTTP/1.1"),
            "198.51.100.14:80 POST /v1 HTTP/1.1".to_owned(),
            format!("198.51.100.15:443 GET /{token}-other HTTP/1.1"),
        ]
    );
    assert_eq!(lab.hits(&format!("{token}-api")).len(), 1);
    let stranger: IpAddr = "198.51.100.21".parse().unwrap();
    let second: IpAddr = "198.51.100.12".parse().unwrap();
    lab.expect_silence(stranger);
    lab.expect_silence(EVIL);
    let frames = lab.frames();
    assert_eq!(frames.iter().filter(|frame| frame.is_tcp(22) || frame.dst == second && frame.is_tcp(80)).count(), 0);
    lab.unconfined(&format!("curl -fsS -m3 http://{second}/{token}-out; curl -fsS -m3 http://{stranger}/{token}-out"))
        .exits(0);
    lab.expect_hits(&format!("{token}-out"), 2);
}
