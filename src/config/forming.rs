//! What the keys of a cluster of nodes must have in common: pure, called for every configuration.

use std::net::IpAddr;

use super::{Config, Mode, Routing, SECRET_BYTES_MIN, SHARDS_MAX, overlap_ip};

/// Heartbeats that may be lost before a follower stands for election.
const HEARTBEATS_PER_ELECTION_MIN: u32 = 3;

type Contradictions = Vec<(&'static [&'static str], String)>;

impl Config {
    /// Adds what contradicts in `cluster` and `security`; each entry names the keys and says what to do.
    pub(super) fn cluster_contradictions(&self, out: &mut Contradictions) {
        let (cluster, raft) = (&self.cluster, &self.cluster.raft);
        if raft.heartbeat_interval * HEARTBEATS_PER_ELECTION_MIN > raft.election_timeout {
            out.push((
                &["cluster.raft.election_timeout_ms", "cluster.raft.heartbeat_interval_ms"],
                format!(
                    "`cluster.raft.election_timeout_ms` must be at least {HEARTBEATS_PER_ELECTION_MIN} times \
                     `cluster.raft.heartbeat_interval_ms`, or one late heartbeat would depose a leader"
                ),
            ));
        }
        if cluster.swim.ping_timeout >= cluster.swim.ping_interval {
            out.push((
                &["cluster.swim.ping_timeout_ms", "cluster.swim.ping_interval_ms"],
                "`cluster.swim.ping_timeout_ms` must be less than `cluster.swim.ping_interval_ms`: the rest of the \
                 interval is for asking others"
                    .into(),
            ));
        }
        if let Some(addr) = cluster.swim.addr_advertised.filter(|addr| !can_be_told(addr.ip())) {
            out.push((
                &["cluster.swim.addr_advertised"],
                format!(
                    "`cluster.swim.addr_advertised: {addr}` means nothing on other hosts: give the address at which they \
                     reach this node"
                ),
            ));
        }
        if self.security.cluster_secret.is_some() && self.security.cluster_secret_file.is_some() {
            out.push((
                &["security.cluster_secret", "security.cluster_secret_file"],
                "`security.cluster_secret` and `security.cluster_secret_file` are two ways to say the same: keep one \
                 of them"
                    .into(),
            ));
        }
        match cluster.mode {
            Mode::Standalone if !cluster.seeds.is_empty() => out.push((
                &["cluster.seeds", "cluster.mode"],
                "a standalone node asks no seeds: set `cluster.mode: cluster`, or leave `cluster.seeds` out"
                    .into(),
            )),
            Mode::Standalone => {}
            Mode::Cluster => self.contradictions_among_nodes(out),
        }
    }

    fn contradictions_among_nodes(&self, out: &mut Contradictions) {
        let (cluster, peers) = (&self.cluster, self.cluster.cluster_addr);
        if self.security.cluster_secret.is_none() && self.security.cluster_secret_file.is_none() {
            out.push((
                &["cluster.mode", "security.cluster_secret", "security.cluster_secret_file"],
                format!(
                    "`cluster.mode: cluster` needs a secret that all nodes share, {SECRET_BYTES_MIN} bytes or more: set \
                     `security.cluster_secret_file: PATH` (make one with `head -c 32 /dev/urandom | base64 > PATH`)"
                ),
            ));
        }
        if cluster.seeds.is_empty() {
            out.push((
                &["cluster.mode", "cluster.seeds"],
                format!(
                    "`cluster.mode: cluster` needs the addresses of the first nodes, the same list on all nodes: \
                     `cluster.seeds: [{}, ...]`",
                    cluster.cluster_advertised()
                ),
            ));
        }
        if !cluster.roles.voter && cluster.seeds.contains(&cluster.cluster_advertised()) {
            out.push((
                &["cluster.roles", "cluster.seeds"],
                format!(
                    "the seeds found the cluster and vote: give this node the role `voter`, or take {} from the seeds \
                     of all nodes",
                    cluster.cluster_advertised()
                ),
            ));
        }
        if peers.ip().is_unspecified() && cluster.cluster_addr_advertised.is_none() {
            out.push((
                &["cluster.cluster_addr", "cluster.cluster_addr_advertised"],
                format!(
                    "`cluster.cluster_addr: {peers}` listens on every address of this host, so say which one other nodes \
                     should connect to: `cluster.cluster_addr_advertised: HOST:{}`",
                    peers.port()
                ),
            ));
        }
        let told = cluster.swim_advertised();
        // The wildcard without an advertised address was told already.
        let is_told = peers.ip().is_unspecified() && cluster.cluster_addr_advertised.is_none();
        if !is_told
            && cluster.swim.addr_advertised.is_none()
            && told.host.parse::<IpAddr>().is_ok_and(|ip| !can_be_told(ip))
        {
            out.push((
                &["cluster.cluster_addr_advertised", "cluster.cluster_addr"],
                format!(
                    "{} means nothing on other hosts: set `cluster.cluster_addr_advertised: HOST:PORT` to where they reach \
                     this node",
                    cluster.cluster_advertised()
                ),
            ));
        }
        let elsewhere = cluster.seeds.iter().find(|seed| !is_loopback(&seed.host));
        if let Some(seed) =
            elsewhere.filter(|_| peers.ip().is_loopback() && cluster.cluster_addr_advertised.is_none())
        {
            out.push((
                &["cluster.cluster_addr", "cluster.seeds"],
                format!(
                    "`cluster.cluster_addr: {peers}` is reached from this host alone, but the seed {seed} is elsewhere: \
                     set it to an address that the other nodes reach, or to 0.0.0.0:{0} together with \
                     `cluster.cluster_addr_advertised: HOST:{0}`",
                    peers.port()
                ),
            ));
        }
        if overlap_ip(peers.ip(), cluster.client_addr.ip()) && peers.port() == cluster.client_addr.port() {
            out.push((
                &["cluster.cluster_addr", "cluster.client_addr"],
                format!("`cluster.cluster_addr` and `cluster.client_addr` both take port {}", peers.port()),
            ));
        }
        if let Some(admin) = self.admin.addr.filter(|admin| overlap_ip(admin.ip(), peers.ip()))
            && admin.port() == peers.port()
        {
            out.push((
                &["cluster.cluster_addr", "admin.addr"],
                format!("`cluster.cluster_addr` and `admin.addr` both take port {}", peers.port()),
            ));
        }
        let core_ports = self.kafka.core_port_first..self.kafka.core_port_first + SHARDS_MAX;
        if self.kafka.routing == Routing::Core && core_ports.contains(&u32::from(peers.port())) {
            out.push((
                &["kafka.core_port_first", "cluster.cluster_addr"],
                format!(
                    "the {SHARDS_MAX} ports from `kafka.core_port_first: {}` contain that of `cluster.cluster_addr` \
                     ({peers})",
                    self.kafka.core_port_first
                ),
            ));
        }
    }
}

/// Whether an address means the same on another host: a wildcard does not, and a link-local IPv6 address needs the name
/// of an interface beside it, which each host gives itself.
pub(crate) fn can_be_told(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::{Config, Mode, Roles, Sources, load, render_effective, render_reference};

    const SECRET: &str = "0123456789abcdef0123";

    fn try_load(text: &str) -> Result<crate::config::Loaded, String> {
        let file = Some(("highwater.yaml".to_owned(), text.to_owned()));
        load(&Sources { file, ..Sources::default() }).map_err(|problems| problems.to_string())
    }

    fn node(cluster: &str, rest: &str) -> String {
        format!(
            "cluster:\n  mode: cluster\n  seeds: [localhost:9093]\n{cluster}security:\n  cluster_secret: {SECRET}\n{rest}"
        )
    }

    #[test]
    fn a_node_of_a_cluster_needs_a_secret_and_seeds() {
        let why = try_load("cluster:\n  mode: cluster\n").unwrap_err();
        assert!(
            why.contains("line 2: `cluster.mode: cluster` needs a secret")
                && why.contains("seeds: [127.0.0.1:9093"),
            "{why}"
        );
        let loaded =
            try_load(&node("  roles: [replica-eligible]\n  cluster_addr: 127.0.0.1:7000\n", "")).unwrap();
        assert_eq!(loaded.config.cluster.mode, Mode::Cluster);
        assert_eq!(loaded.config.cluster.roles, Roles { voter: false, leader: false, replica: true });
        assert_eq!(loaded.config.cluster.cluster_advertised().to_string(), "127.0.0.1:7000");
        assert_eq!(loaded.config.security.secret().unwrap().unwrap().bytes(), SECRET.as_bytes());
    }

    #[test]
    fn cluster_keys_that_contradict_each_other_are_refused_with_what_to_do() {
        for (cluster, rest, want) in [
            (
                "  cluster_addr: 0.0.0.0:9093\n",
                "",
                "line 4: `cluster.cluster_addr: 0.0.0.0:9093` listens on every address",
            ),
            ("  cluster_addr: 127.0.0.1:9092\n", "", "both take port 9092"),
            (
                "  cluster_addr: 127.0.0.1:9094\n",
                "",
                "`cluster.cluster_addr` and `admin.addr` both take port 9094",
            ),
            ("  raft: {heartbeat_interval_ms: 101}\n", "", "must be at least 3 times"),
            (
                "  raft: {election_timeout_ms: 200}\n",
                "",
                "line 4: `cluster.raft.election_timeout_ms` must be",
            ),
            (
                "",
                "kafka: {routing: core, core_port_first: 9093}\nadmin: {addr: none}\n",
                "that of `cluster.cluster_addr`",
            ),
            ("", "  cluster_secret_file: /x\n", "keep one of them"),
            (
                "  swim: {ping_timeout_ms: 100}\n",
                "",
                "line 4: `cluster.swim.ping_timeout_ms` must be less than",
            ),
            ("  swim: {addr_advertised: '0.0.0.0:1'}\n", "", "means nothing on other hosts"),
            ("  swim: {addr_advertised: '[fe80::1]:1'}\n", "", "means nothing on other hosts"),
            ("  cluster_addr_advertised: 0.0.0.0:9093\n", "", "0.0.0.0:9093 means nothing on other hosts"),
            ("  cluster_addr: '[fe80::1]:9093'\n", "", "[fe80::1]:9093 means nothing on other hosts"),
            (
                "  roles: [replica-eligible]\n  cluster_addr_advertised: localhost:9093\n",
                "",
                "the seeds found the cluster",
            ),
        ] {
            let why = try_load(&node(cluster, rest)).unwrap_err();
            assert!(why.starts_with("highwater.yaml, line ") && why.contains(want), "{why}");
        }
        let why = try_load(&node("", "").replace("localhost:", "n2.example:")).unwrap_err();
        assert!(why.contains("reached from this host alone, but the seed n2.example:9093"), "{why}");
        let why = try_load("cluster:\n  seeds: [a:1]\n").unwrap_err();
        assert!(why.contains("line 2: a standalone node asks no seeds"), "{why}");
        try_load(&node("  raft: {heartbeat_interval_ms: 100, voters: 3}\n", "")).unwrap();
    }

    #[test]
    fn gossip_takes_the_place_of_the_tcp_port_unless_it_is_given_one() {
        let swim = |cluster: &str| {
            let cluster = try_load(&node(cluster, "")).unwrap().config.cluster;
            let of_seed = cluster.swim_of(&cluster.seeds[0]).to_string();
            (cluster.swim_addr().to_string(), cluster.swim_advertised().to_string(), of_seed)
        };
        let of = |bound: &str, told: &str, seed: &str| (bound.to_owned(), told.to_owned(), seed.to_owned());
        assert_eq!(swim(""), of("127.0.0.1:9093", "127.0.0.1:9093", "localhost:9093"));
        let behind = "  cluster_addr: 0.0.0.0:9093\n  cluster_addr_advertised: n1.example:7000\n";
        assert_eq!(swim(behind), of("0.0.0.0:9093", "n1.example:7000", "localhost:9093"));
        let apart = format!("{behind}  swim: {{port: 7001}}\n");
        assert_eq!(swim(&apart), of("0.0.0.0:7001", "n1.example:7001", "localhost:7001"));
        let told = "  swim: {addr_advertised: 10.0.0.9:7002}\n";
        assert_eq!(swim(told), of("127.0.0.1:9093", "10.0.0.9:7002", "localhost:9093"));
    }

    #[test]
    fn seeds_are_hosts_with_ports_each_once() {
        let seeds = |text: &str| try_load(&node("", "").replace("[localhost:9093]", text));
        let many: Vec<String> = (0..10).map(|n| format!("localhost:{}", 9000 + n)).collect();
        for bad in [
            "[localhost]",
            "[localhost:1, localhost:1]",
            "[localhost:1, LOCALHOST:1]",
            "[a:0]",
            "x",
            &format!("[{}]", many.join(", ")),
        ] {
            let why = seeds(bad).unwrap_err();
            assert!(
                why.contains("line 3: `cluster.seeds` must be a list of up to 9 different hosts"),
                "{bad}: {why}"
            );
        }
        let loaded = seeds("localhost:2,[::1]:3").unwrap();
        let shown: Vec<String> = loaded.config.cluster.seeds.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["localhost:2", "[::1]:3"]);
        let again = render_effective(&loaded).replace("(hidden)", SECRET);
        assert_eq!(try_load(&again).unwrap().config, loaded.config);
    }

    #[test]
    fn roles_are_named_once_each() {
        let roles =
            |text: &str| try_load(&format!("cluster: {{roles: {text}}}\n")).map(|l| l.config.cluster.roles);
        assert_eq!(roles("[voter, leader-eligible, replica-eligible]"), Ok(Roles::ALL));
        assert_eq!(roles("[voter]"), Ok(Roles { voter: true, leader: false, replica: false }));
        for bad in ["[]", "[boss]", "[voter, voter]", "[leader-eligible]"] {
            assert!(roles(bad).unwrap_err().contains("`cluster.roles` must be"), "{bad}");
        }
    }

    #[test]
    fn the_secret_is_not_repeated_anywhere() {
        const WRONG: &str = "tooshort-XYZ";
        let flag = |path: &str, value: &str| crate::config::Setting {
            path: path.into(),
            value: value.into(),
            flag: format!("--set {path}={value}"),
        };
        let with = |flags| load(&Sources { flags, ..Sources::default() });
        for path in ["security.cluster_secret", "security.cluster_secrt", "cluster_secret"] {
            let why = with(vec![flag(path, WRONG)]).unwrap_err().to_string();
            assert!(!why.contains(WRONG) && why.contains(path), "{why}");
        }
        let file = format!("security: {{cluster_secret: {WRONG}}}\n");
        let why = try_load(&file).unwrap_err();
        assert!(
            !why.contains(WRONG)
                && why.contains("`security.cluster_secret` must be `none` or a text of 16 to 1024 bytes"),
            "{why}"
        );
        let loaded = with(vec![flag("security.cluster_secret", SECRET)]).unwrap();
        let shown = format!("{}{:?}{loaded:?}", render_effective(&loaded), loaded.config);
        assert!(!shown.contains(SECRET), "{shown}");
        assert!(render_effective(&loaded).contains("cluster_secret: (hidden)"), "{shown}");
        assert!(render_reference().contains("cluster_secret: none"));
    }

    #[test]
    fn by_default_a_new_leader_stands_within_a_second_and_a_half() {
        // The lease of the old leader ends after the longest timeout, the next one may take as long again to stand.
        let raft = Config::default().cluster.raft;
        assert!(raft.election_timeout * 4 <= Duration::from_millis(1250));
    }
}
