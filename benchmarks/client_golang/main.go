// An exporter of the facts of ../scraped.py with client_golang, for `make bench-scrape`.
//
// It is a collector that keeps const metrics for each image and renders only images that changed. It serves
// on a free port of 127.0.0.1 and prints the port. Each line of standard input is a number of images to change.
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

// facts of one image: its state at each destination, and its metrics.
type facts struct {
	states  []string
	metrics []prometheus.Metric
}

type store struct {
	sync.Mutex
	images  []*facts
	changes int
}

func newStore(size int) *store {
	s := &store{images: make([]*facts, size)}
	for i := range s.images {
		build := i % (size / repositories)
		states := []string{"COMPLETE", "COMPLETE", "COMPLETE"}
		if build%50 == 0 {
			states[build%3] = "IN_PROGRESS"
		}
		s.images[i] = &facts{states: states}
		s.render(i)
	}
	return s
}

func repository(number int) string { return fmt.Sprintf("team/app-%d", number) }

func (s *store) render(i int) {
	size := len(s.images) / repositories
	number, build := i/size, i%size
	tag := []string{repository(number), fmt.Sprintf("build-%d", build)}
	labels := join(tag, []string{""}, source)
	digest := join(tag, []string{fmt.Sprintf("sha256:%032x%032x", number, build)}, source)
	metrics := []prometheus.Metric{gauge(info, 1, digest), gauge(pushedAt, pushed+float64(build), labels)}
	for d, where := range destinations {
		for _, state := range statuses {
			value := 0.0
			if state == s.images[i].states[d] {
				value = 1
			}
			metrics = append(metrics, gauge(status, value, labels, where, []string{state}))
		}
	}
	s.images[i].metrics = metrics
}

func (s *store) change(count int) {
	s.Lock()
	defer s.Unlock()
	for ; count > 0; count-- {
		s.changes++
		i := s.changes * step % len(s.images)
		states := s.images[i].states
		if states[0] == "COMPLETE" {
			states[0] = "IN_PROGRESS"
		} else {
			states[0] = "COMPLETE"
		}
		s.render(i)
	}
}

func (s *store) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{status, info, pushedAt, images, oldest} {
		out <- desc
	}
}

func (s *store) Collect(out chan<- prometheus.Metric) {
	s.Lock()
	defer s.Unlock()
	size := len(s.images) / repositories
	for number := 0; number < repositories; number++ {
		s.collect(repository(number), s.images[number*size:(number+1)*size], out)
	}
}

func (s *store) collect(repository string, all []*facts, out chan<- prometheus.Metric) {
	for _, image := range all {
		for _, metric := range image.metrics {
			out <- metric
		}
	}
	labels := join([]string{repository}, source)
	for d, where := range destinations {
		tally, oldestBuild := map[string]int{}, -1
		for build, image := range all {
			tally[image.states[d]]++
			if oldestBuild < 0 && image.states[d] == "IN_PROGRESS" {
				oldestBuild = build
			}
		}
		for _, state := range statuses {
			out <- gauge(images, float64(tally[state]), labels, where, []string{state})
		}
		if oldestBuild >= 0 {
			out <- gauge(oldest, pushed+float64(oldestBuild), labels, where)
		}
	}
}

func main() {
	size, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	facts := newStore(size)
	gatherer := prometheus.NewRegistry()
	gatherer.MustRegister(facts)
	http.Handle("/metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}))
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
