// An exporter of the facts of ../scraped.py with client_golang, for `make bench-scrape`.
//
// As fast as client_golang is meant to be used: a collector of const metrics, which are kept per
// image and made anew only for images that change. It serves on a free port of 127.0.0.1, which goes
// to standard output, and changes as many images as a line of standard input says.
package main

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	repositories = 20
	pushed       = 1.79e9
	step         = 7919
)

var (
	source       = []string{"111122223333", "us-east-1"}
	destinations = [][]string{
		{"eu-west-1", "111122223333"}, {"us-west-2", "111122223333"}, {"eu-west-1", "444455556666"},
	}
	statuses = []string{"IN_PROGRESS", "COMPLETE", "FAILED", "MISSING"}

	registry    = []string{"source_registry_id", "source_region"}
	destination = []string{"region", "registry_id"}
	image       = join([]string{"repository", "tag", "digest"}, registry)

	status = prometheus.NewDesc("ecr_image_replication_status",
		"1 for the state that the replication of the image to the destination is in, 0 for the others.",
		join(image, destination, []string{"status"}), nil)
	info = prometheus.NewDesc("ecr_image_info",
		"Always 1; gives the digest of a watched image, also of one that is watched by tag.", image, nil)
	pushedAt = prometheus.NewDesc("ecr_image_pushed_timestamp_seconds",
		"Unix time at which the image was pushed to the source registry.", image, nil)
	images = prometheus.NewDesc("ecr_repository_replication_images",
		"Watched images of the repository whose replication to the destination is in the state.",
		join([]string{"repository"}, registry, destination, []string{"status"}), nil)
	oldest = prometheus.NewDesc("ecr_repository_replication_oldest_pending_timestamp_seconds",
		"Unix push time of the oldest watched image that is IN_PROGRESS or MISSING at the destination.",
		join([]string{"repository"}, registry, destination), nil)
)

func join(parts ...[]string) []string {
	var all []string
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

func gauge(desc *prometheus.Desc, value float64, labels ...[]string) prometheus.Metric {
	return prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, join(labels...)...)
}

// facts of one image: its state at each destination, and what is told of it.
type facts struct {
	states  []string
	metrics []prometheus.Metric
}

type ledger struct {
	sync.Mutex
	images  []*facts
	changes int
}

func newLedger(size int) *ledger {
	l := &ledger{images: make([]*facts, size)}
	for i := range l.images {
		build := i % (size / repositories)
		states := []string{"COMPLETE", "COMPLETE", "COMPLETE"}
		if build%50 == 0 {
			states[build%3] = "IN_PROGRESS"
		}
		l.images[i] = &facts{states: states}
		l.render(i)
	}
	return l
}

func repository(number int) string { return fmt.Sprintf("team/app-%d", number) }

func (l *ledger) render(i int) {
	size := len(l.images) / repositories
	number, build := i/size, i%size
	tag := []string{repository(number), fmt.Sprintf("build-%d", build)}
	own := join(tag, []string{""}, source)
	digest := join(tag, []string{fmt.Sprintf("sha256:%032x%032x", number, build)}, source)
	metrics := []prometheus.Metric{gauge(info, 1, digest), gauge(pushedAt, pushed+float64(build), own)}
	for d, where := range destinations {
		for _, state := range statuses {
			value := 0.0
			if state == l.images[i].states[d] {
				value = 1
			}
			metrics = append(metrics, gauge(status, value, own, where, []string{state}))
		}
	}
	l.images[i].metrics = metrics
}

func (l *ledger) change(count int) {
	l.Lock()
	defer l.Unlock()
	for ; count > 0; count-- {
		l.changes++
		i := l.changes * step % len(l.images)
		states := l.images[i].states
		if states[0] == "COMPLETE" {
			states[0] = "IN_PROGRESS"
		} else {
			states[0] = "COMPLETE"
		}
		l.render(i)
	}
}

func (l *ledger) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{status, info, pushedAt, images, oldest} {
		out <- desc
	}
}

func (l *ledger) Collect(out chan<- prometheus.Metric) {
	l.Lock()
	defer l.Unlock()
	size := len(l.images) / repositories
	for number := 0; number < repositories; number++ {
		l.collect(repository(number), l.images[number*size:(number+1)*size], out)
	}
}

func (l *ledger) collect(repository string, all []*facts, out chan<- prometheus.Metric) {
	for _, image := range all {
		for _, metric := range image.metrics {
			out <- metric
		}
	}
	own := join([]string{repository}, source)
	for d, where := range destinations {
		tally, first := map[string]int{}, -1
		for build, image := range all {
			tally[image.states[d]]++
			if first < 0 && image.states[d] == "IN_PROGRESS" {
				first = build
			}
		}
		for _, state := range statuses {
			out <- gauge(images, float64(tally[state]), own, where, []string{state})
		}
		if first >= 0 {
			out <- gauge(oldest, pushed+float64(first), own, where)
		}
	}
}

func main() {
	size, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	facts := newLedger(size)
	own := prometheus.NewRegistry()
	own.MustRegister(facts)
	http.Handle("/metrics", promhttp.HandlerFor(own, promhttp.HandlerOpts{}))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() { panic(http.Serve(listener, nil)) }()
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		count, err := strconv.Atoi(lines.Text())
		if err != nil {
			panic(err)
		}
		facts.change(count)
		fmt.Println("changed")
	}
}
