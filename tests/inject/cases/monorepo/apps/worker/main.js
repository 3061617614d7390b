consume("amqp://queue");
