# The queues of a source registry, in its account and Region. Events of its pushes reach the queue directly. Events of
# replications come from the destinations, over an event bus: see ../events-destination. docs/events.md explains it.
# Set in the exporter's configuration:
#   registries:
#     - region: <Region of the module>
#       events_queue_url: <output events_queue_url>

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "name" {
  description = "Name of the event bus and the rules, and the beginning of the names of the queues."
  type        = string
  default     = "ecr-events"
}

variable "reader_role_name" {
  description = "Name of the role that the exporter reads this registry with. It must be in this account."
  type        = string
}

variable "destination_accounts" {
  description = "Other accounts that images are replicated to."
  type        = list(string)
  default     = []
}

variable "shards" {
  description = "Number of shards of the exporter (--total-shards). Each needs a queue of its own."
  type        = number
  default     = 1
}

data "aws_caller_identity" "this" {}

# A message that is an hour old has no use: polling has found the image by then. The exporter deletes every message
# that it takes, also one that it cannot parse, so a dead-letter queue would stay empty.
resource "aws_sqs_queue" "events" {
  count                     = var.shards
  name                      = "${var.name}-${count.index}"
  message_retention_seconds = 3600
  receive_wait_time_seconds = 20
  sqs_managed_sse_enabled   = true
}

data "aws_iam_policy_document" "queue" {
  count = var.shards
  statement {
    sid       = "EventBridge"
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.events[count.index].arn]
    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com"]
    }
    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values = [
        aws_cloudwatch_event_rule.pushes[count.index].arn,
        aws_cloudwatch_event_rule.replications[count.index].arn,
      ]
    }
  }
}

resource "aws_sqs_queue_policy" "events" {
  count     = var.shards
  queue_url = aws_sqs_queue.events[count.index].url
  policy    = data.aws_iam_policy_document.queue[count.index].json
}

# A rule for each queue, because a rule has at most five targets.
resource "aws_cloudwatch_event_rule" "pushes" {
  count       = var.shards
  name        = "${var.name}-${count.index}"
  description = "Pushes to ECR, deletions and changes of the storage class"
  event_pattern = jsonencode({
    source      = ["aws.ecr"]
    detail-type = ["ECR Image Action"]
    account     = [data.aws_caller_identity.this.account_id]
  })
}

resource "aws_cloudwatch_event_target" "pushes" {
  count     = var.shards
  rule      = aws_cloudwatch_event_rule.pushes[count.index].name
  target_id = "queue"
  arn       = aws_sqs_queue.events[count.index].arn
}

# A bus of its own, so that no other rule of this account sees the events of other accounts and Regions.
resource "aws_cloudwatch_event_bus" "replications" {
  name = var.name
}

data "aws_iam_policy_document" "bus" {
  statement {
    sid       = "Destinations"
    actions   = ["events:PutEvents"]
    resources = [aws_cloudwatch_event_bus.replications.arn]
    principals {
      type        = "AWS"
      identifiers = var.destination_accounts
    }
  }
}

resource "aws_cloudwatch_event_bus_policy" "replications" {
  count          = length(var.destination_accounts) > 0 ? 1 : 0
  event_bus_name = aws_cloudwatch_event_bus.replications.name
  policy         = data.aws_iam_policy_document.bus.json
}

resource "aws_cloudwatch_event_rule" "replications" {
  count          = var.shards
  name           = "${var.name}-${count.index}"
  description    = "Events of replications, which the destinations send"
  event_bus_name = aws_cloudwatch_event_bus.replications.name
  event_pattern  = jsonencode({ source = ["aws.ecr"] })
}

resource "aws_cloudwatch_event_target" "replications" {
  count          = var.shards
  rule           = aws_cloudwatch_event_rule.replications[count.index].name
  event_bus_name = aws_cloudwatch_event_bus.replications.name
  target_id      = "queue"
  arn            = aws_sqs_queue.events[count.index].arn
}

data "aws_iam_policy_document" "reader" {
  statement {
    sid       = "EventsQueue"
    actions   = ["sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"]
    resources = aws_sqs_queue.events[*].arn
  }
}

resource "aws_iam_role_policy" "reader" {
  name_prefix = "read-${var.name}-"
  role        = var.reader_role_name
  policy      = data.aws_iam_policy_document.reader.json
}

output "events_queue_url" {
  description = "URL of the queue, for registries[].events_queue_url. {shard} stands for the number of the shard."
  value       = replace(aws_sqs_queue.events[0].url, "/-0$/", "-{shard}")
}

output "event_bus_arn" {
  description = "ARN of the event bus, for the modules at the destinations."
  value       = aws_cloudwatch_event_bus.replications.arn
}
